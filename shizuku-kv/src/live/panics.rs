//! Catches panics in a type's own code, so that a live value continues after them.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt;

use crate::record::{
    ByteDeserialize, KeyValue, KvReadError, check_record, decode_record, type_name,
};
use crate::store::{KvEntry, KvError};

/// Runs a type's own code on an entry. A panic is [`KvReadError::Panicked`], which names the step.
pub(super) fn guarded<T, R>(
    entry: &KvEntry,
    during: &'static str,
    run: impl FnOnce() -> R,
) -> Result<R, KvReadError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| KvReadError::Panicked {
        type_name: type_name::<T>(),
        key: entry.key.clone(),
        version: entry.version,
        during,
    })
}

/// Reads the record of an entry, and checks it.
pub(super) fn read<T, R>(
    entry: &KvEntry,
    check: impl FnOnce(&T) -> R,
) -> Result<(T, R), KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    let record = guarded::<T, _>(entry, "decoded", || decode_record::<T>(entry))??;
    let checked = guarded::<T, _>(entry, "checked", || {
        check_record(&record, entry)?;
        Ok::<_, KvReadError>(check(&record))
    });
    match checked.flatten() {
        Ok(checked) => Ok((record, checked)),
        Err(rejected) => {
            drop_quietly::<T, _>(record);
            Err(rejected)
        }
    }
}

/// A value whose `Drop` may panic. Such a panic is caught and logged, so that it does not end the
/// task that drops the value. As a second panic during another one, it would even end the process.
///
/// The code is safe: a field cannot be moved out of a type with a `Drop` unless a state without a
/// value exists. Each access would have to reject that state. So the value has two owners, and
/// fields are dropped in their order: the guard is always the last owner.
#[derive(Clone)]
pub(super) struct LastOwned<T> {
    value: Arc<T>,
    _last: LastOwner<T>,
}

impl<T> LastOwned<T> {
    pub(super) fn new(value: T) -> Self {
        let value = Arc::new(value);
        Self { _last: LastOwner(Some(Arc::clone(&value))), value }
    }
}

impl<T> Deref for LastOwned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for LastOwned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for LastOwned<T> {}

#[derive(Clone)]
struct LastOwner<T>(Option<Arc<T>>);

impl<T> Drop for LastOwner<T> {
    fn drop(&mut self) {
        drop_quietly::<T, _>(self.0.take());
    }
}

/// Drops an owner of a value of type `T`, and catches and logs a panic of the value's `Drop`.
fn drop_quietly<T, O>(owner: O) {
    if catch_unwind(AssertUnwindSafe(|| drop(owner))).is_err() {
        tracing::error!(r#type = type_name::<T>(), "the `Drop` of a live value panicked");
    }
}

/// Runs the task of a live value or map. If it panics, `end` gets an error with the type's name,
/// because the task runs no other foreign code than that of the type.
pub(super) async fn catch_panic<T>(
    operation: &'static str,
    run: impl Future<Output = ()>,
    end: impl FnOnce(KvError),
) {
    if AssertUnwindSafe(run).catch_unwind().await.is_err() {
        let error = KvError::Panicked { operation, type_name: type_name::<T>() };
        tracing::error!(%error, "a live value is no longer followed");
        end(error);
    }
}
