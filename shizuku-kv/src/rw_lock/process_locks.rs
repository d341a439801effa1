//! Locks that were acquired without a guard. They belong to the process and not to a value.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::guard::Hold;
use super::record::LockMode;
use crate::store::Key;

/// The holds of each lock in each mode, the newest last. A hold uses its session, whose task keeps
/// this value alive even if all handles of the store were dropped.
#[derive(Debug, Default)]
pub(super) struct ProcessLocks(Mutex<HashMap<(Key, LockMode), Vec<Hold>>>);

impl ProcessLocks {
    /// Adds a hold, and drops the lost ones of the same lock and mode, because they need no release
    /// any more.
    pub(super) fn add(&self, hold: Hold) {
        let mut locks = self.lock();
        let holds = locks.entry((hold.name.key.clone(), hold.mode)).or_default();
        holds.retain(|hold| hold.loss().is_none());
        holds.push(hold);
    }

    /// Removes the oldest hold that is not lost, otherwise the oldest, so that a lost hold never
    /// prevents the release of a live one.
    pub(super) fn remove(&self, key: &Key, mode: LockMode) -> Option<Hold> {
        let mut locks = self.lock();
        let key_and_mode = (key.clone(), mode);
        let holds = locks.get_mut(&key_and_mode)?;
        let live = holds.iter().position(|hold| hold.loss().is_none()).unwrap_or(0);
        let hold = (live < holds.len()).then(|| holds.remove(live));
        if holds.is_empty() {
            locks.remove(&key_and_mode);
        }
        hold
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Key, LockMode), Vec<Hold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
