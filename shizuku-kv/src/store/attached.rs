//! State of higher layers that belongs to a handle and its clones.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use futures_core::future::BoxFuture;
use tokio::sync::watch;

use super::{Deadline, KvResult, lock};

/// State of a higher layer that belongs to a handle and its clones.
pub(crate) trait Attached: Default + Send + Sync + 'static {
    /// Rejects the acquisition of resources in the store from now on, because the connection is
    /// about to be shut down. The default rejects none.
    fn reject(&self) {}

    /// Releases the resources of this state in the store, before the connection is shut down. The
    /// default releases none.
    fn close(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        let _ = deadline;
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Attached state of any type.
struct Attachment {
    value: Arc<dyn Any + Send + Sync>,
    reject: fn(&(dyn Any + Send + Sync)),
    close: fn(Arc<dyn Any + Send + Sync>, Deadline) -> BoxFuture<'static, KvResult<()>>,
}

impl Attachment {
    fn new<T: Attached>() -> Self {
        Self {
            value: Arc::<T>::default(),
            reject: |value| {
                if let Some(value) = value.downcast_ref::<T>() {
                    value.reject();
                }
            },
            close: |value, deadline| {
                Box::pin(async move {
                    match value.downcast_ref::<T>() {
                        Some(value) => value.close(deadline).await,
                        None => Ok(()),
                    }
                })
            },
        }
    }
}

/// The attached state of one handle and its clones, one value of each type.
#[derive(Default)]
pub(super) struct Attachments {
    attached: Mutex<ByType>,
    /// Set when the users have dropped the last clone of the handle.
    is_abandoned: watch::Sender<bool>,
}

#[derive(Default)]
struct ByType {
    values: HashMap<TypeId, Attachment>,
    /// Whether the connection is about to be shut down.
    is_closed: bool,
}

impl Attachments {
    /// Returns the value of a type. The first call creates the default value.
    pub(super) fn get<T: Attached>(&self) -> Arc<T> {
        let mut attached = lock(&self.attached);
        let ByType { values, is_closed } = &mut *attached;
        let attachment = values.entry(TypeId::of::<T>()).or_insert_with(|| {
            let attachment = Attachment::new::<T>();
            if *is_closed {
                (attachment.reject)(&*attachment.value);
            }
            attachment
        });
        // The slot of a type has a value of that type.
        Arc::clone(&attachment.value).downcast().unwrap_or_default()
    }

    /// Makes higher layers reject the acquisition of resources in the store from now on.
    pub(super) fn reject(&self) {
        let mut attached = lock(&self.attached);
        attached.is_closed = true;
        attached.values.values().for_each(|each| (each.reject)(&*each.value));
    }

    /// Releases the resources of higher layers in the store.
    pub(super) async fn close(&self, deadline: Deadline) -> KvResult<()> {
        let closing: Vec<_> = {
            let attached = lock(&self.attached);
            let all = attached.values.values();
            all.map(|each| (each.close)(Arc::clone(&each.value), deadline)).collect()
        };
        let mut closed = Ok(());
        for closing in closing {
            closed = closing.await.and(closed);
        }
        closed
    }

    /// Waits until the users have dropped the last clone of the handle.
    pub(super) async fn abandoned(&self) {
        // The sender lives in `self`, so waiting does not fail.
        let _ = self.is_abandoned.subscribe().wait_for(|is_abandoned| *is_abandoned).await;
    }
}

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachments").finish_non_exhaustive()
    }
}

/// The users' clones of a handle. Dropping the last one marks the handle as abandoned.
pub(super) struct User(Arc<Attachments>);

impl User {
    pub(super) fn of(attachments: &Arc<Attachments>) -> Self {
        Self(Arc::clone(attachments))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.is_abandoned.send_replace(true);
    }
}
