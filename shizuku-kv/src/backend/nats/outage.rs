//! The log lines of an outage: each reason once for each server, and the length of the outage.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Server;
use tokio::time::Instant;

use super::config::without_userinfo;
use super::server_errors::ConnectionFailure;

/// Maximum number of different reasons that are logged for one outage.
const REASONS: usize = 32;

/// The state and the logged reasons of an outage.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Number of successive connections on which the server has not answered.
    unanswered: AtomicUsize,
    outage: Mutex<OutageLog>,
}

#[derive(Debug, Default)]
struct OutageLog {
    phase: Phase,
    /// Reasons that were logged since the connection was lost.
    logged: HashSet<(String, Arc<str>)>,
    /// Number of failed attempts of each server at the last call of [`Outage::attempted`].
    failures: HashMap<String, usize>,
}

#[derive(Debug, Default)]
enum Phase {
    /// The first connection is being opened. Its errors are returned to the caller.
    #[default]
    First,
    Up,
    Down {
        since: Instant,
    },
}

impl Outage {
    fn outage(&self) -> MutexGuard<'_, OutageLog> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the client reports a connection.
    pub(super) fn connected(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Records that the connection was lost, with the server's reason if it gave one.
    pub(super) fn began(&self, reason: Option<&str>) {
        let mut outage = self.outage();
        if matches!(outage.phase, Phase::Up) {
            outage.phase = Phase::Down { since: Instant::now() };
            drop(outage);
            tracing::warn!(reason, "disconnected from NATS");
        }
    }

    /// Records that the server has answered.
    pub(super) fn ended(&self, server: &str, version: &str) {
        self.unanswered.store(0, Ordering::Relaxed);
        let mut outage = self.outage();
        outage.logged.clear();
        let phase = std::mem::replace(&mut outage.phase, Phase::Up);
        drop(outage);
        match phase {
            Phase::First => tracing::info!(server, version, "connected to NATS"),
            Phase::Down { since } => {
                tracing::info!(server, version, after = ?since.elapsed(), "reconnected to NATS");
            }
            Phase::Up => {}
        }
    }

    /// Records the client's list of servers, and logs each new reason once. Returns the reasons why
    /// the attempts since the last call failed, or `None` if no attempt was made.
    pub(super) fn attempted(&self, servers: &[Server]) -> Option<ConnectionFailure> {
        let mut news = Vec::new();
        let mut outage = self.outage();
        for server in servers {
            let address = without_userinfo(&server.to_string());
            let counted =
                outage.failures.insert(address.clone(), server.failed_attempts).unwrap_or(0);
            if let Some(error) = &server.last_error
                && server.failed_attempts > counted
            {
                news.push((address, error.as_str().into()));
            }
        }
        drop(outage);
        self.failed(news)
    }

    /// Records failed attempts, each with its server and the client's error.
    pub(super) fn failed(&self, attempts: Vec<(String, Arc<str>)>) -> Option<ConnectionFailure> {
        let described: Vec<_> = attempts
            .into_iter()
            .map(|(server, error)| {
                let failure = ConnectionFailure::of_attempt(&error);
                (server, failure)
            })
            .collect();
        for (server, failure) in &described {
            let mut outage = self.outage();
            let is_new = matches!(outage.phase, Phase::Down { .. })
                && outage.logged.len() < REASONS
                && outage.logged.insert((server.clone(), Arc::clone(&failure.reason)));
            drop(outage);
            if is_new {
                let reason = &failure.reason;
                tracing::warn!(server, %reason, "cannot reconnect to NATS, retrying");
            }
        }
        let is_about_credentials =
            described.iter().any(|(_, failure)| failure.is_about_credentials);
        let all: Vec<_> = described
            .iter()
            .map(|(server, failure)| format!("{server}: {}", failure.reason))
            .collect();
        (!all.is_empty())
            .then(|| ConnectionFailure { reason: all.join("; ").into(), is_about_credentials })
    }
}
