//! The read-change-write loop behind [`KeyValueWrite::modify`](crate::KeyValueWrite::modify).

use std::time::Duration;

use super::entry::TypedEntry;
use super::error::type_name;
use super::key::{own_key, prints_as};
use super::key_value::{decode_entry, encode_value};
use super::put;
use super::read::typed_key;
use super::{ByteDeserialize, ByteSerialize, KeyValue, KvReadError, KvWriteError};
use crate::store::{Deadline, Key, KvEntry, KvError, Store};

/// What errors call it.
const OPERATION: &str = "modify";

/// How often it is tried. With the pauses below this is some 1.3 seconds, within which even a fleet gets through.
const ATTEMPTS: u32 = 32;

/// The longest pause after the first attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause after any attempt.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn modify<T>(
    store: &Store,
    key: Key,
    mut change: impl FnMut(Option<T>) -> Option<T> + Send,
) -> Result<Option<TypedEntry<T>>, KvWriteError>
where
    T: KeyValue<Value: ByteSerialize + ByteDeserialize> + Send,
{
    let deadline = Deadline::after(store.deadline());
    let mut attempts = 0;
    loop {
        let entry =
            in_time(store, deadline).get(&key).await.map_err(|error| as_whole(error, deadline))?;
        let read = || entry.as_ref().map(|entry| read::<T>(&key, entry)).transpose();
        let Some(changed) = change(read()?.map(TypedEntry::into_value)) else { return Ok(read()?) };

        let own = changed.kv_key();
        if !prints_as(&own, &key) {
            return Err(KvWriteError::KeyMismatch {
                type_name: type_name::<T>(),
                own: own_key(&own),
                key,
            });
        }
        drop(own);
        let bytes = encode_value(&changed, &key)?;
        let store = in_time(store, deadline);
        if store.deadline().is_zero() {
            return Err(deadline.timeout(OPERATION, Some(&key)).into());
        }
        let written = match &entry {
            Some(entry) => put::update::<T>(&store, key.clone(), bytes, entry.version).await,
            None => put::create::<T>(&store, key.clone(), bytes).await,
        };
        match written {
            Ok(version) => return Ok(Some(TypedEntry::new(changed, version, None))),
            Err(error) if !error.is_conflict() => return Err(as_whole(error, deadline).into()),
            Err(_) => {}
        }

        attempts += 1;
        let pause = pause_after(attempts, fastrand::f64());
        if attempts == ATTEMPTS || pause >= deadline.remaining() {
            return Err(KvWriteError::Contended { type_name: type_name::<T>(), key, attempts });
        }
        tokio::time::sleep(pause).await;
    }
}

/// The store with what is left of the deadline.
fn in_time(store: &Store, deadline: Deadline) -> Store {
    store.with_deadline(deadline.remaining())
}

/// A part that took too long is the whole that did: it had only what was left of the deadline that was set.
fn as_whole(error: KvError, deadline: Deadline) -> KvError {
    match error {
        KvError::Timeout { key, .. } => deadline.timeout(OPERATION, key.as_ref()),
        error => error,
    }
}

fn read<T>(key: &Key, entry: &KvEntry) -> Result<TypedEntry<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    decode_entry(typed_key::<T>(key)?, entry)
}

/// The pause after an attempt: a random part, 0 to 1, of the longest.
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
