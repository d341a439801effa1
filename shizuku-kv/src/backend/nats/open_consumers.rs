//! The consumers of a connection that may exist on the server.

use std::collections::HashSet;
use std::mem;
use std::sync::{Mutex, PoisonError};

/// Consumers of a connection that may exist, each as the subject of its deletion.
#[derive(Debug, Default)]
pub(super) struct OpenConsumers(Mutex<HashSet<String>>);

impl OpenConsumers {
    fn with<T>(&self, change: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn add(&self, subject: String) {
        self.with(|consumers| consumers.insert(subject));
    }

    pub(super) fn remove(&self, subject: &str) {
        self.with(|consumers| consumers.remove(subject));
    }

    /// Forgets all consumers, and returns them.
    pub(super) fn take(&self) -> HashSet<String> {
        self.with(mem::take)
    }
}
