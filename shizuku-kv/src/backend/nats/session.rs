//! Whether the server has answered on the current connection.
//!
//! The client reports a connection before the server has finally accepted it: a server answers the
//! first ping of a user whose credentials expire in that second, and then closes the connection. So
//! each new connection sends a request (`first_answer`), and counts as up with the answer
//! (ADR 0067).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_nats::{Client, Statistics};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The current connection of a client, identified by the number of connections so far.
#[derive(Debug)]
pub(super) struct Session {
    statistics: Arc<Statistics>,
    /// Number of the last connection on which the server has answered.
    answered: AtomicU64,
    /// Wakes the task if an operation finds that the connection is not up.
    recheck: Arc<Notify>,
    task: OnceLock<AbortHandle>,
}

impl Session {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            statistics: client.statistics(),
            answered: AtomicU64::new(0),
            recheck: Arc::default(),
            task: OnceLock::new(),
        }
    }

    /// Records the task that sends the requests, which ends with the session.
    pub(super) fn set_task(&self, task: AbortHandle) {
        // The task is started once.
        let _ = self.task.set(task);
    }

    /// Wakes the task that sends the requests.
    pub(super) fn recheck(&self) -> Arc<Notify> {
        Arc::clone(&self.recheck)
    }

    /// Number of the current connection, or of the last one.
    pub(super) fn number(&self) -> u64 {
        self.statistics.connects.load(Ordering::Acquire)
    }

    /// Records that the server has answered on the connection with this number.
    pub(super) fn answered(&self, number: u64) {
        self.answered.store(number, Ordering::Release);
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire) == self.number()
    }

    /// Wakes the task to check the connection again, because an event may have been lost.
    pub(super) fn check(&self) {
        if !self.is_answered() {
            self.recheck.notify_one();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}
