//! What the functions without guards hold: locks that belong to the process and not to a value.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::guard::Hold;
use super::record::LockMode;
use crate::store::Key;

/// Of each lock in each mode, the newest last.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashMap<(Key, LockMode), Vec<Hold>>>);

impl Held {
    pub(super) fn put(&self, key: &Key, mode: LockMode, hold: Hold) {
        self.lock().entry((key.clone(), mode)).or_default().push(hold);
    }

    /// The oldest, which is the first to be lost: none is left behind that another release believes in.
    pub(super) fn take(&self, key: &Key, mode: LockMode) -> Option<Hold> {
        let mut held = self.lock();
        let place = (key.clone(), mode);
        let holds = held.get_mut(&place)?;
        let hold = (!holds.is_empty()).then(|| holds.remove(0));
        if holds.is_empty() {
            held.remove(&place);
        }
        hold
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Key, LockMode), Vec<Hold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
