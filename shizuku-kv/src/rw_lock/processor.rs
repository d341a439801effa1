//! Work under a lock, which is acquired before the work and released after it, even if the work
//! fails.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};

use super::error::{DistroRwLockError, LockLoss, WithLockProcessError};
use super::guard::Hold;
use super::lock::DistroRwLock;
use super::options::LockOptions;
use super::record::LockMode;
use super::reentry;
use crate::store::Store;

/// An operation on an input.
///
/// Types implement it with an `async fn process`. [`processor_fn`] converts a closure.
pub trait Processor<I> {
    /// Output of the operation.
    type Output;
    /// Error of the operation.
    type Error;

    /// Runs the operation.
    fn process(&self, input: I) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send;
}

impl<I, P: Processor<I> + ?Sized> Processor<I> for &P {
    type Output = P::Output;
    type Error = P::Error;

    fn process(&self, input: I) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send {
        (**self).process(input)
    }
}

impl<I, P: Processor<I> + ?Sized> Processor<I> for Arc<P> {
    type Output = P::Output;
    type Error = P::Error;

    fn process(&self, input: I) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send {
        (**self).process(input)
    }
}

/// A closure as a [`Processor`], from [`processor_fn`].
#[derive(Clone, Copy)]
pub struct ProcessorFn<F>(F);

/// Converts a closure to a [`Processor`]. The closure can be called repeatedly, so it clones the
/// values that it owns for each call:
/// `move |input| { let store = store.clone(); async move { … } }`.
///
/// ```
/// use shizuku_kv::Processor;
/// use shizuku_kv::rw_lock::processor_fn;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), std::num::ParseIntError> {
/// let double = processor_fn(async |text: String| text.parse::<u32>().map(|number| number * 2));
/// assert_eq!(double.process("21".to_owned()).await?, 42);
/// # Ok(())
/// # }
/// ```
pub fn processor_fn<F>(work: F) -> ProcessorFn<F> {
    ProcessorFn(work)
}

impl<I, O, E, F, W> Processor<I> for ProcessorFn<F>
where
    F: Fn(I) -> W,
    W: Future<Output = Result<O, E>> + Send,
{
    type Output = O;
    type Error = E;

    fn process(&self, input: I) -> impl Future<Output = Result<O, E>> + Send {
        (self.0)(input)
    }
}

impl<F> fmt::Debug for ProcessorFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessorFn").finish_non_exhaustive()
    }
}

/// The common part of both processors.
struct Locked<P> {
    processor: Arc<P>,
    store: Store,
    resource: String,
    options: LockOptions,
    ends_when_lost: bool,
}

impl<P> Locked<P> {
    async fn process<I>(
        &self,
        mode: LockMode,
        input: I,
    ) -> Result<P::Output, WithLockProcessError<P::Error>>
    where
        P: Processor<I>,
    {
        let lock = DistroRwLock::with_options(&self.store, &self.resource, self.options.clone())?;
        let hold = lock.wait("process", mode).await?;
        let output = run(&hold, self.ends_when_lost, self.processor.process(input)).await?;
        match hold.release().await {
            Ok(()) => Ok(output),
            Err(DistroRwLockError::LeaseLost { resource, reason }) => {
                Err(WithLockProcessError::LeaseLost { resource, reason })
            }
            // The work was done under the lock, whose release continues in the background.
            Err(error) => {
                tracing::debug!(resource = self.resource, %error, "failed to release a lock");
                Ok(output)
            }
        }
    }
}

/// Runs work while a lock is held.
pub(super) async fn run<O, E>(
    hold: &Hold,
    ends_when_lost: bool,
    work: impl Future<Output = Result<O, E>>,
) -> Result<O, WithLockProcessError<E>> {
    let lost = |reason: LockLoss| {
        let resource = hold.name.resource.to_string();
        Err(WithLockProcessError::LeaseLost { resource, reason })
    };
    let work = reentry::within(hold, work);
    let output = if ends_when_lost {
        match select(pin!(work), pin!(hold.lost())).await {
            Either::Left((output, _)) => output,
            Either::Right((reason, _)) => return lost(reason),
        }
    } else {
        work.await
    };
    let output = output.map_err(WithLockProcessError::Process)?;
    hold.loss().map_or(Ok(output), lost)
}

macro_rules! locked_processor {
    ($(#[$doc:meta])* $name:ident, $mode:expr) => {
        $(#[$doc])*
        ///
        /// The lock is released when the work ends, fails, panics, or is dropped. A processor is
        /// cheap to create at the place of its use. The work passes the token with its writes:
        /// [`current_fencing_token`](super::current_fencing_token). If the work waits for the same
        /// lock in its own task, it gets [`DistroRwLockError::Reentrant`].
        pub struct $name<P>(Locked<P>);

        impl<P> $name<P> {
            /// Creates work under the lock of a resource, with the default options. `store` may be
            /// owned or borrowed.
            pub fn new(
                processor: Arc<P>,
                store: impl AsRef<Store>,
                resource: impl AsRef<str>,
            ) -> Self {
                Self(Locked {
                    processor,
                    store: store.as_ref().clone(),
                    resource: resource.as_ref().to_owned(),
                    options: LockOptions::new(),
                    ends_when_lost: false,
                })
            }

            /// Sets the options for holding the lock, and for waiting for it.
            #[must_use]
            pub fn options(mut self, options: LockOptions) -> Self {
                self.0.options = options;
                self
            }

            /// Drops the work when the lock is lost, instead of letting it continue to its end.
            #[must_use]
            pub fn ends_when_lost(mut self) -> Self {
                self.0.ends_when_lost = true;
                self
            }

            /// Acquires the lock, runs the work, and releases the lock.
            ///
            /// Cancel safe: dropping the future drops the work, and releases the lock in the
            /// background.
            ///
            /// # Errors
            /// Returns [`WithLockProcessError::Lock`] if the lock was not granted, for example
            /// because the store did not answer or the wait was too long. Returns
            /// [`WithLockProcessError::LeaseLost`] if the lock was lost during the work. Returns
            /// [`WithLockProcessError::Process`] if the work fails, with its error.
            pub async fn process<I>(
                &self,
                input: I,
            ) -> Result<P::Output, WithLockProcessError<P::Error>>
            where
                P: Processor<I>,
            {
                self.0.process($mode, input).await
            }
        }

        impl<I: Send, P: Processor<I> + Send + Sync> Processor<I> for $name<P>
        where
            P::Output: Send,
            P::Error: Send,
        {
            type Output = P::Output;
            type Error = WithLockProcessError<P::Error>;

            fn process(
                &self,
                input: I,
            ) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send {
                self.0.process($mode, input)
            }
        }

        impl<P> fmt::Debug for $name<P> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("store", &self.0.store.name())
                    .field("resource", &self.0.resource)
                    .finish_non_exhaustive()
            }
        }
    };
}

locked_processor! {
    /// Work that reads a resource together with other readers.
    LockedResourceReadProcessor, LockMode::Read
}

locked_processor! {
    /// Work with exclusive access to a resource.
    LockedResourceWriteProcessor, LockMode::Write
}
