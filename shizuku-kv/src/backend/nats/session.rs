//! Decision when a new connection counts as up, and the log lines of an outage.
//!
//! The client reports a connection before the server has finally accepted it: a server answers the
//! first ping of a user whose credentials expire in that second, and then closes the connection. So
//! each new connection sends a request, and counts as up with the answer
//! (`docs/adr/0067-a-connection-is-up-with-its-first-answer.md`).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Server, Statistics};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::config::without_userinfo;
use super::link::{Link, LinkEvents, RENEW, Trouble, details_of, refusal_in};

/// Timeout for the first answer. A server that rejects a client does so at once.
const PATIENCE: Duration = Duration::from_millis(250);

/// Interval of polling the client's state until the server has answered on a connection.
const POLL: Duration = Duration::from_millis(50);

/// Maximum number of different reasons that are logged for one outage.
const REASONS: usize = 32;

/// The current connection of a client, identified by the number of connections so far.
#[derive(Debug)]
pub(super) struct Session {
    statistics: Arc<Statistics>,
    /// Number of the last connection on which the server has answered.
    answered: AtomicU64,
    /// Wakes the task if an operation finds that the connection is not up.
    doubt: Arc<Notify>,
    task: OnceLock<AbortHandle>,
}

impl Session {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            statistics: client.statistics(),
            answered: AtomicU64::new(0),
            doubt: Arc::default(),
            task: OnceLock::new(),
        }
    }

    /// Sends a request on each new connection, until the link is dropped or its runtime ends.
    pub(super) fn start(&self, link: Weak<Link>, events: LinkEvents) {
        let task = tokio::spawn(follow(link, events, Arc::clone(&self.doubt)));
        // The link starts it once.
        let _ = self.task.set(task.abort_handle());
    }

    /// Number of the current connection, or of the last one.
    fn number(&self) -> u64 {
        self.statistics.connects.load(Ordering::Acquire)
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire) == self.number()
    }

    /// Wakes the task to check the connection again, because an event may have been lost.
    pub(super) fn check(&self) {
        if !self.is_answered() {
            self.doubt.notify_one();
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

async fn follow(link: Weak<Link>, events: LinkEvents, doubt: Arc<Notify>) {
    let mut changes = events.changes();
    loop {
        let is_answered = {
            let Some(link) = link.upgrade() else { return };
            if link.is_over() {
                return;
            }
            let (client, session) = (link.client(), &link.session);
            let number = session.number();
            let is_connected =
                || client.connection_state() == State::Connected && session.number() == number;
            if !session.is_answered()
                && is_connected()
                && link.probe(PATIENCE).await
                && is_connected()
            {
                let server = client.server_info();
                // Stored before the event is sent, so that no operation waits for a lost event.
                session.answered.store(number, Ordering::Release);
                events.answered(&server.server_name, &server.version);
                continue;
            }
            session.is_answered()
        };
        let wait = async {
            tokio::select! {
                alive = changes.next() => alive,
                () = doubt.notified() => true,
            }
        };
        if is_answered {
            if !wait.await {
                return;
            }
        } else {
            // The client changes its state after it has sent the event.
            let _ = timeout(POLL, wait).await;
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Known facts and logged reasons of an outage.
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
    /// Number of failed attempts of each server at the last count.
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
    pub(super) fn attempted(&self, servers: &[Server]) -> Option<Trouble> {
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
    pub(super) fn failed(&self, attempts: Vec<(String, Arc<str>)>) -> Option<Trouble> {
        let described: Vec<_> = attempts
            .into_iter()
            .map(|(server, error)| {
                let trouble = describe(&error);
                (server, trouble)
            })
            .collect();
        for (server, trouble) in &described {
            let mut outage = self.outage();
            let is_new = matches!(outage.phase, Phase::Down { .. })
                && outage.logged.len() < REASONS
                && outage.logged.insert((server.clone(), Arc::clone(&trouble.reason)));
            drop(outage);
            if is_new {
                tracing::warn!(server, reason = %trouble.reason, "cannot reconnect to NATS, attempts continue");
            }
        }
        let is_refusal = described.iter().any(|(_, trouble)| trouble.is_refusal);
        let all: Vec<_> = described
            .iter()
            .map(|(server, trouble)| format!("{server}: {}", trouble.reason))
            .collect();
        (!all.is_empty()).then(|| Trouble { reason: all.join("; ").into(), is_refusal })
    }
}

/// Converts the client's error of an attempt, and rephrases it if it is about credentials.
fn describe(error: &str) -> Trouble {
    let refusal = refusal_in(error);
    let reason = match (error.split_once("failed signing nonce: "), refusal) {
        (Some((_, ours)), _) => ours.to_owned(),
        (None, Some(refusal)) => {
            format!("the server rejects the credentials{}; {RENEW}", details_of(refusal))
        }
        (None, None) => error.to_owned(),
    };
    Trouble { reason: reason.into(), is_refusal: refusal.is_some() }
}
