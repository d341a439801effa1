//! The consumers of a connection that may exist on the server.

use std::collections::HashSet;
use std::mem;
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;

use super::delete_on_drop::delete;
use super::link::{Link, Mark};

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

    /// Deletes all consumers. Waits until the server has answered, or no answer can arrive.
    pub(super) async fn delete_all(&self, link: &Link, mark: Mark) {
        let subjects = self.with(mem::take);
        join_all(subjects.iter().map(|subject| delete(link, mark, subject))).await;
    }
}
