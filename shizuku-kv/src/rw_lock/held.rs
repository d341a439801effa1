//! Locks held by the functions without guards. They belong to the process and not to a value.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::guard::Hold;
use super::record::LockMode;
use crate::store::Key;

/// The holds of each lock in each mode, the newest last.
#[derive(Debug, Default)]
pub(super) struct HeldLocks(Mutex<HashMap<(Key, LockMode), Vec<Hold>>>);

impl HeldLocks {
    /// Adds a hold, and drops the lost ones of the same lock and mode, because they need no release
    /// any more.
    pub(super) fn put(&self, key: &Key, mode: LockMode, hold: Hold) {
        let mut held = self.lock();
        let holds = held.entry((key.clone(), mode)).or_default();
        let lost: Vec<_> = holds.extract_if(.., |hold| hold.loss().is_some()).collect();
        holds.push(hold);
        drop(held);
        // Dropping a hold leaves its coordinator, which acquires another mutex.
        drop(lost);
    }

    /// Removes the oldest hold that is not lost, otherwise the oldest, so that a lost hold never
    /// prevents the release of a live one.
    pub(super) fn take(&self, key: &Key, mode: LockMode) -> Option<Hold> {
        let mut held = self.lock();
        let place = (key.clone(), mode);
        let holds = held.get_mut(&place)?;
        let live = holds.iter().position(|hold| hold.loss().is_none()).unwrap_or(0);
        let hold = (live < holds.len()).then(|| holds.remove(live));
        if holds.is_empty() {
            held.remove(&place);
        }
        hold
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Key, LockMode), Vec<Hold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
