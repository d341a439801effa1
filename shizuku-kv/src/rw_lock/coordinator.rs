//! Applies this process's requests for one lock, one compare-and-swap at a time.
//!
//! A coordinator for each store and resource collects the requests of callers, applies all of them
//! to the cached record ([`record_cache`]), and writes the result (`write.rs`). If the swap is
//! lost, or its outcome is unknown, the coordinator reads the record and applies the requests
//! again. A claim that is already in the record is granted as it is. Callers send commands over
//! channels, so that a caller that is dropped midway leaves no partial change (ADR 0044). The
//! coordinator is a future that callers and a background task poll ([`super::driver`]).
//!
//! While claims of this process wait, the coordinator watches the record, in which a release grants
//! the lock to the next waiter (`follow.rs`). It also watches the sessions before those claims
//! ([`super::failure_detector`]).

mod ask;
mod claims;
mod contention;
mod follow;
mod record_cache;
mod requests;
mod write;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::claims::{ClaimState, LocalClaims, Pending};
use self::contention::Contention;
use self::record_cache::{Cached, RecordCache};
use self::requests::Requests;
use super::channels::{Channels, CoordinatorId};
use super::command::{Command, Rejection, Reply};
use super::error::LockLoss;
use super::failure_detector::FailureDetector;
use super::record::{ClaimId, LockRecord};
use super::session::Registry;
use super::transition::{Change, Outcome};
use crate::store::{FencingToken, Key, KvError, Store, WatchScope};
use crate::watch::Follower;

/// Time for which an idle coordinator keeps the record, so that the next claim takes one round
/// trip.
const KEEP: Duration = Duration::from_secs(10);

/// Time after which a held lock is watched. Its holder then notices if the lock is broken, and
/// knows the waiters, so that a release needs one swap (ADR 0117). A shorter hold is not worth a
/// watch.
const LONG_HELD: Duration = Duration::from_millis(20);

/// The dependencies of a coordinator.
pub(super) struct Environment {
    pub(super) id: CoordinatorId,
    pub(super) store: Store,
    /// The sessions of the store's handle.
    pub(super) sessions: Arc<Registry>,
    /// Has the channel to this coordinator for as long as the coordinator runs.
    pub(super) channels: Arc<Channels>,
}

pub(super) struct Coordinator {
    env: Environment,
    pending: Vec<Pending>,
    claims: LocalClaims,
    /// Set once a shutdown of the connection was requested.
    shutdown: Option<Shutdown>,
    cache: RecordCache,
    watch: Follower,
    contention: Contention,
    requests: Requests,
    failure_detector: FailureDetector,
    /// Time of the last work.
    busy_since: Instant,
    /// Dropped last: once a sender finds this closed, the claims are over too.
    commands: mpsc::UnboundedReceiver<Command>,
}

/// The release of all locks before the connection is shut down.
#[derive(Default)]
struct Shutdown {
    /// Answered when no release is pending any more.
    callers: Vec<Reply<()>>,
    /// Error of an abandoned release.
    failure: Option<KvError>,
}

impl Coordinator {
    pub(super) fn new(env: Environment, commands: mpsc::UnboundedReceiver<Command>) -> Self {
        let mut watch = Follower::shared(&env.store, WatchScope::Key(env.id.1.clone()));
        watch.stop();
        let failure_detector = FailureDetector::new(&env.store);
        let requests = Requests::new(&env.store, env.id.1.clone());
        Self {
            env,
            pending: Vec::new(),
            claims: LocalClaims::default(),
            shutdown: None,
            cache: RecordCache::new(),
            watch,
            contention: Contention::default(),
            requests,
            failure_detector,
            busy_since: Instant::now(),
            commands,
        }
    }

    /// Returns the key of the record.
    fn key(&self) -> &Key {
        &self.env.id.1
    }

    pub(super) async fn run(mut self) {
        // Kept, because a new timer for each request is slow.
        let mut timer = pin!(tokio::time::sleep_until(self.busy_since));
        loop {
            // A caller has to see its answer, even if others send commands all the time.
            tokio::task::consume_budget().await;
            while let Some(command) = self.arrived().await {
                self.accept(command);
            }
            self.leave_with_ended_sessions();
            if self.pending.is_empty() && self.shutdown.is_some() {
                self.purge_requests().await;
            }
            if self.pending.is_empty()
                && let Some(Shutdown { callers, failure }) = &mut self.shutdown
            {
                let released = failure.clone().map_or(Ok(()), |error| Err(Rejection::Store(error)));
                for reply in callers.drain(..) {
                    // A caller that was dropped needs no answer.
                    let _ = reply.send(released.clone());
                }
                if self.retire() {
                    return;
                }
                continue;
            }
            if self.has_work() {
                // Each event may save a swap that would be lost.
                while let Some(event) = self.watch.next().now_or_never() {
                    self.handle(event);
                }
                while let Some(event) = self.requests.next().now_or_never() {
                    self.requests.handle(event);
                }
                self.write().await;
                continue;
            }
            if self.is_idle() {
                self.purge_requests().await;
                if self.retire() {
                    return;
                }
            }
            self.follow();
            if self.has_work() {
                continue;
            }
            let alarm = self.alarm();
            // An early alarm is harmless.
            if alarm < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(alarm);
            }
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.accept(command),
                    // The channels have a sender for as long as this runs.
                    None => return,
                },
                event = self.watch.next() => self.handle(event),
                event = self.requests.next() => self.requests.handle(event),
                watched = self.failure_detector.next() => if let Err(error) = watched {
                    self.reject_waiting(&error);
                },
                () = &mut timer => {}
            }
            self.end_silent_sessions().await;
        }
    }

    /// Returns a command that has arrived. Avoids `try_recv`, because it can park the thread of a
    /// caller while another one sends.
    async fn arrived(&mut self) -> Option<Command> {
        poll_fn(|context| match self.commands.poll_recv(context) {
            Poll::Ready(command) => Poll::Ready(command),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn retire(&mut self) -> bool {
        self.env.channels.retire(&self.env.id, &mut self.commands)
    }

    fn accept(&mut self, command: Command) {
        self.busy_since = Instant::now();
        self.requests.note_change();
        match command {
            Command::Claim { claim, waits, session, wait, reply } => {
                if let Some(entry) = session.take_prefetched(self.key()) {
                    let effect = self.cache.prefetched(entry);
                    self.apply(effect);
                }
                self.claims.add(claim, waits, session, wait, reply);
            }
            Command::Leave { id, reply } => self.leave(id, reply),
            Command::Downgrade { id, reply } => {
                self.pending.push(Pending::new(Change::Downgrade(id), Some(reply)));
            }
            Command::Break { reply } => {
                // The break applies to the present holders, which the cached record may not show.
                self.cache.invalidate();
                let newest = FencingToken::from_u64(0);
                self.pending.push(Pending::new(Change::Break { newest }, Some(reply)));
            }
            Command::Close { reply } => {
                self.shutdown.get_or_insert_default().callers.push(reply);
                // Holders and waiters are notified before their claims are released.
                for id in self.claims.ids(|_| true) {
                    self.reject(id, Rejection::closed());
                }
            }
        }
    }

    fn leave(&mut self, id: ClaimId, reply: Option<Reply<Outcome>>) {
        let session = match self.claims.get(id) {
            // The claim is no longer requested. A write with it may have landed.
            Some(local) if local.is_requested() || local.is_deferred() => {
                let may_be_recorded = local.may_be_recorded();
                let session = self.claims.remove(id).map(|local| local.session);
                if !may_be_recorded {
                    let unsent = Pending::leave(id, session, reply);
                    return unsent.answer(Ok(Outcome::NotThere));
                }
                session
            }
            local => local.map(|local| local.session.clone()),
        };
        self.pending.push(Pending::leave(id, session, reply));
    }

    /// Rejects a claim. Removes the claim from the record if a write may have landed.
    fn reject(&mut self, id: ClaimId, rejection: Rejection) {
        let Some(local) = self.claims.remove(id) else { return };
        if local.may_be_recorded() {
            self.pending.push(Pending::leave(id, Some(local.session.clone()), None));
        }
        local.reject(rejection);
    }

    /// Rejects the claims whose session is over.
    fn leave_with_ended_sessions(&mut self) {
        let over = self.claims.ids(|local| local.session.loss().is_some());
        if !over.is_empty() {
            // The store may have been deleted and created again. A record of the new store may have
            // the very version of the cached record, and would be replaced.
            self.cache.invalidate();
            self.requests.observed(None);
        }
        for id in over {
            self.reject(id, Rejection::SessionOver);
        }
    }

    fn has_work(&self) -> bool {
        let has_requests =
            || !self.pending.is_empty() || self.claims.any(|local| local.is_requested());
        match self.cache.state() {
            Cached::Known(known) => {
                has_requests() && self.requests.patient_until().is_none()
                    || self.requests.has_work()
                    || self.needs_removals(&known.record)
            }
            Cached::Unknown => has_requests() || self.needs_record(),
            Cached::Foreign => has_requests(),
            Cached::Contradicted { .. } => {
                let until = self.cache.contradicted_until();
                until.is_none_or(|until| until <= Instant::now())
                    && (has_requests() || self.needs_record())
            }
        }
    }

    /// Returns whether the record is needed although no request changes it.
    fn needs_record(&self) -> bool {
        !self.claims.is_empty() || self.failure_detector.is_needed()
    }

    /// Returns whether a record needs removals without a request of a caller.
    fn needs_removals(&self, record: &LockRecord) -> bool {
        !self.failure_detector.ended_in(record).is_empty() || !self.orphans(record).is_empty()
    }

    /// Returns the orphaned claims of this process. A claim is an orphan if a write that was given
    /// up has landed late. Its session lives, so that no other process evicts it.
    fn orphans(&self, record: &LockRecord) -> Vec<ClaimId> {
        let is_pending =
            |id: ClaimId| self.pending.iter().any(|pending| pending.change == Change::Leave(id));
        let ids = record.claims().map(|claim| claim.id);
        let is_unknown = |id: &ClaimId| self.claims.get(*id).is_none() && !is_pending(*id);
        let mut orphans: Vec<_> = ids.filter(is_unknown).collect();
        if !orphans.is_empty() {
            let own = self.env.sessions.of_runtime(self.env.id.0);
            orphans.retain(|id| own.contains(&id.session));
        }
        orphans
    }

    /// Ends sessions that have not renewed their lease. Sessions of this process that others have
    /// ended are ended here too.
    async fn end_silent_sessions(&mut self) {
        self.failure_detector.end_silent().await;
        let Some(known) = self.cache.known() else { return };
        for session in self.failure_detector.ended_in(&known.record) {
            self.env.sessions.end(session, LockLoss::Evicted);
        }
    }

    /// Returns the time of the next check, if no event comes before.
    fn alarm(&self) -> Instant {
        let now = Instant::now();
        let mut alarm = if self.needs_record() { now + KEEP } else { self.busy_since + KEEP };
        for local in self.claims.iter() {
            alarm = alarm.min(local.session.end());
            if let ClaimState::Granted { since, .. } = &local.state
                && !self.watch.is_started()
            {
                alarm = alarm.min(*since + LONG_HELD);
            }
        }
        let contradicted_until = self.cache.contradicted_until().filter(|until| *until > now);
        let patient_until = self.requests.patient_until();
        let next = [contradicted_until, patient_until, self.failure_detector.alarm()];
        alarm = next.into_iter().flatten().fold(alarm, Instant::min);
        // Lets other tasks run, even if something is always due.
        alarm.max(now + Duration::from_millis(1))
    }

    fn is_idle(&self) -> bool {
        !self.needs_record() && self.pending.is_empty() && self.busy_since.elapsed() >= KEEP
    }
}
