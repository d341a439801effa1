//! The read-change-write loop behind [`KeyValueWrite::modify`](crate::KeyValueWrite::modify)
//! (ADR 0071).

use std::fmt;
use std::future::ready;
use std::time::Duration;

use super::entry::TypedEntry;
use super::error::type_name;
use super::key::{own_key, prints_as};
use super::key_value::{decode_entry, encode_value};
use super::put;
use super::read::typed_key;
use super::{ByteDeserialize, ByteSerialize, KeyValue, KvWriteError};
use crate::store::timer::timeout_at;
use crate::store::{Deadline, Key, KvEntry, KvError, Store, VersionToken};

/// Name of the operation in errors.
const OPERATION: &str = "modify";

/// Maximum number of attempts. With the pauses below they take some 1.3 seconds, within which even
/// a fleet of writers succeeds.
const ATTEMPTS: u32 = 32;

/// Maximum pause after the first attempt. It doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Maximum pause after any attempt.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The change to a record that [`modify`](crate::KeyValueWrite::modify) has read.
///
/// `Some(record)` converts to [`Write`](Self::Write), and `None` to [`Keep`](Self::Keep).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Modify<T> {
    /// Keeps the record, or its absence.
    Keep,
    /// Writes this record.
    Write(T),
    /// Deletes the record. An absent record stays absent.
    Delete,
}

impl<T> From<Option<T>> for Modify<T> {
    fn from(record: Option<T>) -> Self {
        record.map_or(Self::Keep, Self::Write)
    }
}

/// Shows the variant, not the record.
impl<T> fmt::Debug for Modify<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "Keep",
            Self::Write(_) => "Write(..)",
            Self::Delete => "Delete",
        })
    }
}

/// The return value of a closure for [`modify`](crate::KeyValueWrite::modify) that has to await.
#[derive(Clone, Copy)]
pub struct ModifyAsync<F>(pub F);

impl<F> fmt::Debug for ModifyAsync<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModifyAsync").finish_non_exhaustive()
    }
}

/// Return types of a closure for [`modify`](crate::KeyValueWrite::modify): an `Option` of the
/// record, a [`Modify`], or a `Result` of one of these. A closure can also return a [`ModifyAsync`]
/// of a future that returns any of these.
#[diagnostic::on_unimplemented(
    message = "`modify` cannot use `{Self}` as the change of a `{T}`",
    label = "the closure has to return an `Option<{T}>` or a `Modify<{T}>`",
    note = "a closure that can fail returns a `Result` of one of these, with an error that implements `Send` and \
            `From<KvWriteError>`; one that awaits returns `ModifyAsync(async move {{ … }})`"
)]
pub trait ModifyOutcome<T>: Send {
    /// The error type of `modify`: the closure's own, or [`KvWriteError`] if the closure has none.
    type Error: ModifyError;

    #[doc(hidden)]
    fn __outcome(self) -> impl Future<Output = Result<Modify<T>, Self::Error>> + Send;
}

/// Error types of a closure for [`modify`](crate::KeyValueWrite::modify): any that is `Send` and
/// takes the errors of the store. Exists for the message of the compiler.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a closure for `modify`",
    label = "the error type has to be `Send` and implement `From<KvWriteError>`",
    note = "use `Box<dyn Error + Send + Sync>`, or a type of your own that implements \
            `From<KvWriteError>`, through which the errors of the store arrive"
)]
pub trait ModifyError: From<KvWriteError> + Send {}

#[diagnostic::do_not_recommend]
impl<E: From<KvWriteError> + Send> ModifyError for E {}

impl<T: Send> ModifyOutcome<T> for Option<T> {
    type Error = KvWriteError;

    fn __outcome(self) -> impl Future<Output = Result<Modify<T>, KvWriteError>> + Send {
        ready(Ok(self.into()))
    }
}

impl<T: Send> ModifyOutcome<T> for Modify<T> {
    type Error = KvWriteError;

    fn __outcome(self) -> impl Future<Output = Result<Self, KvWriteError>> + Send {
        ready(Ok(self))
    }
}

impl<T, C, E> ModifyOutcome<T> for Result<C, E>
where
    T: Send,
    C: Into<Modify<T>> + Send,
    E: ModifyError,
{
    type Error = E;

    fn __outcome(self) -> impl Future<Output = Result<Modify<T>, E>> + Send {
        ready(self.map(Into::into))
    }
}

impl<T, F> ModifyOutcome<T> for ModifyAsync<F>
where
    F: Future<Output: ModifyOutcome<T>> + Send,
{
    type Error = <F::Output as ModifyOutcome<T>>::Error;

    async fn __outcome(self) -> Result<Modify<T>, Self::Error> {
        self.0.await.__outcome().await
    }
}

pub(super) async fn modify<T, O>(
    store: &Store,
    key: Key,
    mut change: impl FnMut(Option<T>) -> O + Send,
) -> Result<Option<TypedEntry<T>>, O::Error>
where
    T: KeyValue<Value: ByteSerialize + ByteDeserialize> + Send,
    O: ModifyOutcome<T>,
{
    let deadline = Deadline::after(store.deadline());
    let mut attempts = 0;
    loop {
        let entry = current(store, &key, deadline).await?;
        let outcome = change(read(&key, entry.as_ref())?).__outcome();
        // The deadline includes the time of the closure, and bounds it like that of a request.
        let Some(outcome) = timeout_at(deadline.instant(), outcome).await else {
            return Err(timed_out(&key, deadline).into());
        };
        let written = match outcome? {
            Modify::Keep => return Ok(read_entry(&key, entry.as_ref())?),
            Modify::Write(record) => write(store, &key, entry.as_ref(), record, deadline).await?,
            Modify::Delete => delete(store, &key, entry.as_ref(), deadline).await?,
        };
        match written {
            Swap::Done(record) => return Ok(record),
            Swap::Lost => {
                attempts += 1;
                pause::<T>(&key, attempts, deadline).await?;
            }
        }
    }
}

/// Result of a compare-and-swap.
enum Swap<T> {
    /// The swap took effect, and this is the current record.
    Done(Option<TypedEntry<T>>),
    /// Another writer was first.
    Lost,
}

async fn current(
    store: &Store,
    key: &Key,
    deadline: Deadline,
) -> Result<Option<KvEntry>, KvWriteError> {
    Ok(in_time(store, deadline).get(key).await.map_err(|error| as_whole(error, deadline))?)
}

async fn write<T>(
    store: &Store,
    key: &Key,
    entry: Option<&KvEntry>,
    record: T,
    deadline: Deadline,
) -> Result<Swap<T>, KvWriteError>
where
    T: KeyValue<Value: ByteSerialize>,
{
    let own = record.kv_key();
    if !prints_as(&own, key) {
        let own = own_key(&own);
        return Err(KvWriteError::KeyMismatch {
            type_name: type_name::<T>(),
            own,
            key: key.clone(),
        });
    }
    drop(own);
    let bytes = encode_value(&record, key)?;
    let store = still_in_time(store, key, deadline)?;
    let written = match entry {
        Some(entry) => put::update::<T>(&store, key.clone(), bytes, entry.version).await,
        None => put::create::<T>(&store, key.clone(), bytes).await,
    };
    Ok(match swapped(written, deadline)? {
        Some(version) => Swap::Done(Some(TypedEntry::new(record, version, None))),
        None => Swap::Lost,
    })
}

async fn delete<T>(
    store: &Store,
    key: &Key,
    entry: Option<&KvEntry>,
    deadline: Deadline,
) -> Result<Swap<T>, KvWriteError> {
    let Some(entry) = entry else { return Ok(Swap::Done(None)) };
    let store = still_in_time(store, key, deadline)?;
    let deleted = store.delete_with_version(key, entry.version).await;
    Ok(swapped(deleted, deadline)?.map_or(Swap::Lost, |_| Swap::Done(None)))
}

/// Returns the version that a swap has written, or `None` if another writer was first.
fn swapped(
    written: Result<VersionToken, KvError>,
    deadline: Deadline,
) -> Result<Option<VersionToken>, KvWriteError> {
    match written {
        Ok(version) => Ok(Some(version)),
        Err(error) if error.is_conflict() => Ok(None),
        Err(error) => Err(as_whole(error, deadline).into()),
    }
}

/// Backs off before the next attempt. Returns an error if no attempt or no time is left.
async fn pause<T>(key: &Key, attempts: u32, deadline: Deadline) -> Result<(), KvWriteError> {
    let pause = pause_after(attempts, fastrand::f64());
    if attempts == ATTEMPTS || pause >= deadline.remaining() {
        return Err(KvWriteError::Contended {
            type_name: type_name::<T>(),
            key: key.clone(),
            attempts,
        });
    }
    tokio::time::sleep(pause).await;
    Ok(())
}

/// Returns the store with the rest of the deadline, or an error if the deadline has passed: a write
/// that cannot end in time is not sent.
fn still_in_time(store: &Store, key: &Key, deadline: Deadline) -> Result<Store, KvWriteError> {
    let store = in_time(store, deadline);
    if store.deadline().is_zero() { Err(timed_out(key, deadline)) } else { Ok(store) }
}

fn timed_out(key: &Key, deadline: Deadline) -> KvWriteError {
    deadline.timeout(OPERATION, Some(key)).into()
}

/// Returns the store with the rest of the deadline.
fn in_time(store: &Store, deadline: Deadline) -> Store {
    store.with_deadline(deadline.remaining())
}

/// Converts the timeout of a part into the timeout of `modify`, because the part had only the rest
/// of the deadline.
fn as_whole(error: KvError, deadline: Deadline) -> KvError {
    match error {
        KvError::Timeout { key, .. } => deadline.timeout(OPERATION, key.as_ref()),
        error => error,
    }
}

fn read<T>(key: &Key, entry: Option<&KvEntry>) -> Result<Option<T>, KvWriteError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    Ok(read_entry(key, entry)?.map(TypedEntry::into_value))
}

fn read_entry<T>(key: &Key, entry: Option<&KvEntry>) -> Result<Option<TypedEntry<T>>, KvWriteError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    let Some(entry) = entry else { return Ok(None) };
    Ok(Some(decode_entry(typed_key::<T>(key)?, entry)?))
}

/// Returns the pause after an attempt: a random fraction of the maximum.
fn pause_after(attempt: u32, random: f64) -> Duration {
    let longest =
        FIRST_PAUSE.saturating_mul(1 << attempt.min(16).saturating_sub(1)).min(LONGEST_PAUSE);
    longest.mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert_eq!(pause_after(1, 1.0), FIRST_PAUSE);
        assert_eq!(pause_after(2, 1.0), FIRST_PAUSE * 2);
        assert_eq!(pause_after(3, 0.5), FIRST_PAUSE * 2);
        for attempt in [8, 16, 17, ATTEMPTS, u32::MAX] {
            assert_eq!(pause_after(attempt, 1.0), LONGEST_PAUSE);
            assert_eq!(pause_after(attempt, 0.0), Duration::ZERO);
        }
    }
}
