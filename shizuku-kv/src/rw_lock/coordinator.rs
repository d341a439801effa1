//! Applies this process's requests for one lock, one compare-and-swap at a time. [`record_cache`]
//! keeps the known record.
//!
//! A task for each store and resource collects the requests of callers, applies all of them to the
//! cached record, and writes the result. If it loses the swap, it reads and applies again. It does
//! the same if the outcome is unknown: a claim that is already in the record is granted as it is.
//! Callers send commands over channels, so that a caller that leaves midway leaves nothing half
//! done (ADR 0044).
//!
//! While claims of this process wait, the task watches the record, in which a release grants the
//! lock to the next waiter. It also watches the sessions before those claims
//! ([`super::failure_detector`]).

mod record_cache;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::ExponentialBackoff;
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::claims::{ClaimState, Command, Granted, Local, Pending, Refusal};
use super::error::LockLoss;
use super::failure_detector::{FailureDetector, Prospect};
use super::lease;
use super::lock_manager::{CoordinatorId, LockManager};
use super::record::{ClaimId, GRANT_ROOM, LockRecord, SWAP_ROOM, SessionId};
use super::transition::{Change, Outcome};
use crate::store::{
    Deadline, FencingToken, Key, KvEntry, KvError, Store, VersionToken, WatchScope, backoff,
};
use crate::watch::Follower;

/// Time for which an idle coordinator keeps the record, so that the next claim takes one round
/// trip.
const KEEP: Duration = Duration::from_secs(10);

/// Time after which a held lock is watched, so that its holder notices if the lock is broken.
const LONG_HELD: Duration = Duration::from_secs(1);

/// Maximum time that the watch may take, after a lost swap, to deliver the change that won. The
/// change is already on its way.
const NEWS: Duration = Duration::from_millis(20);

/// Maximum time to wait for each further change of another process, if others claim too.
const PASS: Duration = Duration::from_millis(1);

/// Maximum number of repeats of a read that is older than the newest version seen. Afterwards a
/// watch settles the question.
const STALE_READS: u32 = 4;

/// The record as it was last seen.
#[derive(Clone, Debug)]
struct CachedRecord {
    record: LockRecord,
    /// `None` if no entry exists.
    version: Option<VersionToken>,
    /// Whether the entry has expired, because the store was given a maximum age. Creating another
    /// entry asks the store whether that is over.
    has_expired: bool,
}

pub(super) struct Coordinator {
    locks: Arc<LockManager>,
    place: CoordinatorId,
    store: Store,
    pending: Vec<Pending>,
    locals: HashMap<ClaimId, Local>,
    /// Number of claims that have arrived.
    arrivals: u64,
    /// Notified when everything is released, because the connection is shut down.
    closing: Vec<oneshot::Sender<()>>,
    is_closed: bool,
    known: Option<CachedRecord>,
    /// The newest version of the record that was seen.
    newest: Option<VersionToken>,
    /// Version that a write of unknown outcome expects. The write may still land until another
    /// write has replaced that version.
    unsure: Option<Option<VersionToken>>,
    /// Set while the store does not answer.
    pauses: Option<ExponentialBackoff>,
    /// Number of swaps lost in a row.
    conflicts: u32,
    /// Time of the last lost swap. Others use the lock too, so their changes are watched for a
    /// while.
    contended: Option<Instant>,
    watch: Follower,
    /// The newest version that had been seen when the watch was opened.
    opened_at: Option<VersionToken>,
    /// The initial state that the watch has delivered so far, until it is complete.
    state: Option<Option<KvEntry>>,
    /// Since when reads return an older version than the newest seen. The watch is to show whether
    /// the store was recreated.
    verifies: Option<Instant>,
    /// Whether the record has to be read again.
    looks: bool,
    failure_detector: FailureDetector,
    /// Time of the last work.
    busy_since: Instant,
    /// Dropped last: once a sender finds this closed, the claims are over too.
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Coordinator {
    pub(super) fn new(
        locks: Arc<LockManager>,
        place: CoordinatorId,
        store: Store,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let mut watch = Follower::shared(&store, WatchScope::Key(place.1.clone()));
        watch.stop();
        let failure_detector = FailureDetector::new(&store);
        Self {
            locks,
            place,
            store,
            pending: Vec::new(),
            locals: HashMap::new(),
            arrivals: 0,
            closing: Vec::new(),
            is_closed: false,
            known: None,
            newest: None,
            unsure: None,
            pauses: None,
            conflicts: 0,
            contended: None,
            watch,
            opened_at: None,
            state: None,
            verifies: None,
            looks: false,
            failure_detector,
            busy_since: Instant::now(),
            commands,
        }
    }

    fn key(&self) -> &Key {
        &self.place.1
    }

    pub(super) async fn run(mut self) {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.accept(command);
            }
            self.leave_what_is_over();
            if self.is_closed && self.pending.is_empty() {
                for reply in self.closing.drain(..) {
                    // A caller that is gone needs no answer.
                    let _ = reply.send(());
                }
                if self.locks.retire(&self.place, &mut self.commands) {
                    return;
                }
                continue;
            }
            if self.has_work() {
                // Each event may save a swap that would be lost.
                while let Some(event) = self.watch.next().now_or_never() {
                    self.follow_up(event);
                }
                self.write().await;
                continue;
            }
            if self.is_idle() && self.locks.retire(&self.place, &mut self.commands) {
                return;
            }
            self.follow();
            if self.has_work() {
                continue;
            }
            let alarm = self.alarm();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.accept(command),
                    // The lock manager holds a sender for as long as this runs.
                    None => return,
                },
                event = self.watch.next() => self.follow_up(event),
                watched = self.failure_detector.next() => if let Err(error) = watched {
                    self.refuse_waiting(&error);
                },
                () = tokio::time::sleep_until(alarm) => {}
            }
            self.bury().await;
        }
    }

    fn accept(&mut self, command: Command) {
        self.busy_since = Instant::now();
        match command {
            Command::Claim { claim, waits, session, in_line, hope, reply } => {
                if let Some(entry) = session.take_found(&self.place.1) {
                    self.find(entry);
                }
                let state = ClaimState::Claiming { waits, sent: false, hopes: false, reply };
                self.arrivals += 1;
                let local = Local { claim, session, arrival: self.arrivals, in_line, hope, state };
                self.locals.insert(local.claim.id, local);
            }
            Command::Leave { id, reply } => self.leave(id, reply),
            Command::Downgrade { id, reply } => {
                self.pending.push(Pending::of(Change::Downgrade(id), Some(reply)));
            }
            Command::Break { reply } => {
                // The break applies to the present holders, which the cached record may not show.
                self.known = None;
                let newest = FencingToken::from_u64(0);
                self.pending.push(Pending::of(Change::Break { newest }, Some(reply)));
            }
            Command::Close { reply } => self.close(reply),
        }
    }

    /// Notifies holders and waiters that their claims have ended, then releases the claims.
    fn close(&mut self, reply: oneshot::Sender<()>) {
        self.is_closed = true;
        self.closing.push(reply);
        for (id, local) in std::mem::take(&mut self.locals) {
            if !local.is_claiming() || local.was_sent() {
                let session = Some(local.session.clone());
                self.pending.push(Pending { session, ..Pending::of(Change::Leave(id), None) });
            }
            local.refuse(Refusal::closed());
        }
    }

    /// Returns the claims to make with the next write, in the order of their arrival.
    fn claims(&self) -> Vec<ClaimId> {
        let mut claims: Vec<_> = self.locals.values().filter(|local| local.is_asking()).collect();
        claims.sort_unstable_by_key(|local| local.arrival);
        claims.into_iter().map(|local| local.claim.id).collect()
    }

    fn leave(&mut self, id: ClaimId, reply: Option<oneshot::Sender<Result<Outcome, Refusal>>>) {
        let session = self.locals.get(&id).map(|local| local.session.clone());
        if let Some(claiming) = self.locals.get(&id).filter(|local| local.is_claiming()) {
            let was_sent = claiming.was_sent();
            // The claim is no longer requested. A write with it may have landed.
            self.locals.remove(&id);
            if !was_sent {
                return Pending::of(Change::Leave(id), reply).answer(Ok(Outcome::NotThere));
            }
        }
        self.pending.push(Pending { session, ..Pending::of(Change::Leave(id), reply) });
    }

    /// Notifies claims whose session is over, and removes them from the record if possible.
    fn leave_what_is_over(&mut self) {
        let over: Vec<_> = self
            .locals
            .iter()
            .filter(|(_, local)| local.session.loss().is_some())
            .map(|(id, _)| *id)
            .collect();
        if !over.is_empty() {
            // The store may have been deleted and created again. A record of the new store may have
            // the very version of the cached record, and would be replaced.
            (self.known, self.looks) = (None, true);
        }
        for id in over {
            if let Some(local) = self.locals.remove(&id) {
                local.refuse(Refusal::SessionOver);
                self.leave(id, None);
            }
        }
    }

    fn has_work(&self) -> bool {
        let claims = || self.locals.values().any(Local::is_asking);
        let is_due =
            || self.known.as_ref().is_some_and(|known| !self.due(&known.record).is_empty());
        let verifies = self.verifies.is_some_and(|since| since.elapsed() < Deadline::DEFAULT);
        !verifies && (self.looks || !self.pending.is_empty() || claims() || is_due())
    }

    /// Tries once to write all requested changes.
    async fn write(&mut self) {
        let mut is_of_now = false;
        loop {
            if self.known.is_none() {
                if let Err(error) = self.read().await {
                    return self.trouble(error).await;
                }
                is_of_now = true;
            }
            let Some(known) = &self.known else { return };
            let mut record = known.record.clone();
            // A break that was sent may have landed, and does not extend to later holders.
            let newest = FencingToken::from_u64(record.fence);
            for pending in self.pending.iter_mut().filter(|pending| !pending.sent) {
                if let Change::Break { newest: of_old } = &mut pending.change {
                    *of_old = newest;
                }
            }
            let due = self.due(&record);
            if !due.is_empty() {
                // The same write may make room.
                self.locals
                    .values_mut()
                    .filter(|local| local.is_hoping())
                    .for_each(|local| local.set_hoping(false));
            }
            for change in due {
                record.apply(&change);
            }
            let mut changes: Vec<(Change, Option<ClaimId>)> = Vec::new();
            changes.extend(self.pending.iter().map(|pending| (pending.change.clone(), None)));
            let claims = self.claims();
            for id in &claims {
                let Some(local) = self.locals.get(id) else { continue };
                if let ClaimState::Claiming { waits, .. } = &local.state {
                    let change = Change::Claim { claim: local.claim.clone(), waits: *waits };
                    changes.push((change, Some(*id)));
                }
            }
            let outcomes: Vec<_> = changes
                .iter()
                .map(|(change, id)| (record.apply(change), change.clone(), *id))
                .collect();
            let Some(known) = &self.known else { return };
            let must_write =
                self.unsure.is_some_and(|expected| lease::may_land(expected, known.version));
            if record == known.record && !must_write {
                // The cached record may be stale.
                if !is_of_now {
                    self.known = None;
                    continue;
                }
                return self.conclude(outcomes).await;
            }
            record.stamp(known.record.fence, SystemTime::now());
            let (expected, has_expired) = (known.version, known.has_expired);
            let value = record.to_bytes(expected);
            // Each waiter gets a token eventually, and needs room for it. Waiting readers already
            // have that room; of the writers, only one at a time needs it.
            let room = value.len() + GRANT_ROOM + SWAP_ROOM;
            if !claims.is_empty() && room > self.store.max_value_size() {
                return self.refuse_claims(&Refusal::Full);
            }
            self.note_sent(&claims);
            let written = match expected {
                Some(version) if !has_expired => {
                    self.store.update(self.key(), value, version).await
                }
                _ => self.store.create(self.key(), value).await,
            };
            match written {
                Ok(version) => {
                    (self.unsure, self.pauses, self.conflicts, self.looks) = (None, None, 0, false);
                    self.newest = Some(version);
                    self.known =
                        Some(CachedRecord { record, version: Some(version), has_expired: false });
                    return self.conclude(outcomes).await;
                }
                Err(error) if error.is_conflict() => {
                    (self.known, self.looks) = (None, true);
                    return self.lose().await;
                }
                // Claims need room; leaving does not.
                Err(error @ KvError::StoreFull { .. }) if !claims.is_empty() => {
                    return self.refuse_claims(&Refusal::Store(error));
                }
                Err(error) => {
                    self.known = None;
                    if matches!(error, KvError::OutcomeUnknown { .. }) {
                        self.unsure = Some(expected);
                        self.pending.iter_mut().for_each(|pending| pending.sent = true);
                    }
                    return self.trouble(error).await;
                }
            }
        }
    }

    /// Marks the claims as sent with the next write.
    fn note_sent(&mut self, claims: &[ClaimId]) {
        for id in claims {
            let state = self.locals.get_mut(id).map(|local| &mut local.state);
            if let Some(ClaimState::Claiming { sent, .. }) = state {
                *sent = true;
            }
        }
    }

    /// Returns the removals that a record needs without a request of a caller: sessions that are
    /// over, and orphaned claims of this process. A claim is an orphan if a write that was given up
    /// has landed late. Its session lives, so that no other process evicts it.
    fn due(&self, record: &LockRecord) -> Vec<Change> {
        let mut due: Vec<_> =
            self.failure_detector.over(record).into_iter().map(Change::Evict).collect();
        let own = self.locks.sessions.of_runtime(self.place.0);
        let is_pending =
            |id: ClaimId| self.pending.iter().any(|pending| pending.change == Change::Leave(id));
        let ids = record.claims().map(|claim| claim.id);
        let orphans = ids.filter(|id| {
            own.contains(&id.session) && !self.locals.contains_key(id) && !is_pending(*id)
        });
        due.extend(orphans.map(Change::Leave));
        due
    }

    fn grant(&mut self, id: ClaimId, token: FencingToken) {
        let Some(local) = self.locals.get_mut(&id) else { return };
        let (broken, receiver) = watch::channel(None);
        let held = ClaimState::Held { broken, since: Instant::now() };
        let (ClaimState::Claiming { reply, .. } | ClaimState::Waiting(reply)) =
            std::mem::replace(&mut local.state, held)
        else {
            return;
        };
        // A caller that is gone has left already, or will leave, which then releases the lock.
        let _ = reply.send(Ok(Granted { token, broken: receiver }));
    }

    /// Reports each outcome to its caller. A claim that does not wait for long is given more time
    /// if sessions in its way may be dead.
    async fn conclude(&mut self, outcomes: Vec<(Outcome, Change, Option<ClaimId>)>) {
        if outcomes.iter().any(|(outcome, _, _)| *outcome == Outcome::Busy) {
            self.look_before(None).await;
        }
        self.settle(outcomes);
        let hasty = self
            .locals
            .values()
            .find(|local| local.hope.is_hasty && matches!(local.state, ClaimState::Waiting(_)));
        if let Some(id) = hasty.map(|local| local.claim.id) {
            self.look_before(Some(id)).await;
        }
    }

    /// Reads the unknown sessions before a waiting claim, or before a claim that arrives now, as
    /// long as none of the others is alive.
    async fn look_before(&mut self, claim: Option<ClaimId>) {
        let own = self.own();
        while let Some(CachedRecord { record, .. }) = &self.known {
            let index = record.queue.iter().position(|waiting| Some(waiting.id) == claim);
            let index = index.unwrap_or(record.queue.len());
            let Prospect::Unknown(sessions) = self.failure_detector.prospect(record, index, &own)
            else {
                return;
            };
            // The entry of a session that has ended shows a time as well.
            if self.failure_detector.look(&sessions, own.first().copied()).await.is_err() {
                return;
            }
        }
    }

    /// Returns the sessions of the claims of this process.
    fn own(&self) -> Vec<SessionId> {
        self.locals.keys().map(|id| id.session).collect()
    }

    /// Answers the callers, and updates the claims of this process.
    fn settle(&mut self, outcomes: Vec<(Outcome, Change, Option<ClaimId>)>) {
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        for (outcome, change, id) in outcomes {
            let Some(id) = id else {
                if let Change::Leave(id) = change {
                    self.locals.remove(&id);
                }
                if let Some(pending) = pending.next() {
                    pending.answer(Ok(outcome));
                }
                continue;
            };
            match outcome {
                Outcome::Granted(token) => self.grant(id, token),
                Outcome::Queued => {
                    if let Some(local) = self.locals.get_mut(&id) {
                        local.queue();
                    }
                }
                Outcome::Busy | Outcome::Full => {
                    self.failure_detector.keep_vigil();
                    let is_full = outcome == Outcome::Full;
                    let prospect = self.known.as_ref().map(|known| {
                        self.failure_detector.prospect(
                            &known.record,
                            known.record.queue.len(),
                            &self.own(),
                        )
                    });
                    if !is_full && prospect == Some(Prospect::MayBeDead) {
                        if let Some(local) = self.locals.get_mut(&id) {
                            local.set_hoping(true);
                        }
                    } else if let Some(local) = self.locals.remove(&id) {
                        local.refuse(if is_full { Refusal::Full } else { Refusal::Busy });
                    }
                }
                Outcome::Done | Outcome::Broken(_) | Outcome::NotThere => {}
            }
        }
        self.compare();
    }

    /// Handles a lost swap: another process was first. The watch, if one is open, delivers the new
    /// record sooner than a read would.
    ///
    /// If many processes claim at once, each swap that succeeds makes all others fail. So a process
    /// that has lost lets some changes of the others pass, the more the more often it has lost. A
    /// pending release does not wait.
    async fn lose(&mut self) {
        self.contended = Some(Instant::now());
        self.conflicts = self.conflicts.saturating_add(1);
        // While a replica is behind, a read may return the version that the swap expected. A watch
        // delivers more.
        if self.conflicts > 1 {
            self.start_watch();
        }
        let passes =
            if self.pending.is_empty() { fastrand::u32(0..=self.conflicts.min(7)) } else { 0 };
        for number in 0..=passes {
            if !self.watch.is_started() {
                break;
            }
            let news = async {
                let event = self.watch.next().await;
                self.follow_up(event);
                while self.known.is_none() && self.watch.is_started() {
                    let event = self.watch.next().await;
                    self.follow_up(event);
                }
            };
            let limit = if number == 0 { NEWS } else { PASS };
            if tokio::time::timeout(limit, news).await.is_err() {
                break;
            }
        }
        if self.known.is_none() && self.conflicts > 4 {
            let most = u64::from(self.conflicts.min(50));
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=most))).await;
        }
    }

    /// Handles a failed request: answers the callers if a retry cannot help, then backs off.
    async fn trouble(&mut self, error: KvError) {
        tracing::debug!(store = self.store.name(), key = %self.key(), %error, "a lock cannot be changed for now");
        let is_passing = error.is_retryable() || matches!(error, KvError::OutcomeUnknown { .. });
        if !is_passing {
            let refusal = Refusal::Store(error);
            self.refuse_claims(&refusal);
            let answers = self.pending.iter_mut().filter_map(|pending| pending.reply.take());
            for reply in answers {
                // A caller that is gone needs no answer.
                let _ = reply.send(Err(refusal.clone()));
            }
            let is_gone = matches!(
                refusal,
                Refusal::Store(KvError::Closed { .. } | KvError::StoreNotFound { .. })
            );
            if self.is_closed && is_gone {
                // Nothing is left to release.
                self.pending.clear();
            }
        }
        self.locals.values().for_each(|local| local.tell_hope(false));
        // The cached record may be stale, and no later event is certain to show it.
        (self.known, self.looks) =
            (None, !self.locals.is_empty() || self.failure_detector.is_needed());
        // Grants stay. A claim that leaves is retried while its session holds, and ends with its
        // session otherwise.
        self.pending.retain(|pending| match &pending.change {
            Change::Leave(_) if pending.session.as_ref().is_some_and(|session| session.holds()) => {
                true
            }
            _ => pending.reply.as_ref().is_some_and(|reply| !reply.is_closed()),
        });
        let pauses = self
            .pauses
            .get_or_insert_with(|| backoff(Duration::from_millis(20), Duration::from_secs(1)));
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }

    /// Ends the wait of every claim, because this user may not watch the record or the sessions.
    fn refuse_waiting(&mut self, error: &KvError) {
        let waits =
            |local: &Local| local.is_hoping() || matches!(local.state, ClaimState::Waiting(_));
        let ids: Vec<_> =
            self.locals.iter().filter(|(_, local)| waits(local)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(local) = self.locals.remove(&id) else { continue };
            if !local.is_claiming() || local.was_sent() {
                let session = Some(local.session.clone());
                self.pending.push(Pending { session, ..Pending::of(Change::Leave(id), None) });
            }
            local.refuse(Refusal::Store(error.clone()));
        }
    }

    fn refuse_claims(&mut self, refusal: &Refusal) {
        let ids: Vec<_> = self
            .locals
            .iter()
            .filter(|(_, local)| local.is_claiming())
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            // Claims that may be in the record nevertheless are removed from it.
            let session = self.locals.get(&id).map(|local| local.session.clone());
            let Some(local) = self.locals.remove(&id) else { continue };
            if local.was_sent() {
                self.pending.push(Pending { session, ..Pending::of(Change::Leave(id), None) });
            }
            local.refuse(refusal.clone());
        }
    }

    /// Ends sessions that have not renewed their lease. Sessions of this process that others have
    /// ended are ended here too.
    async fn bury(&mut self) {
        self.failure_detector.end_silent().await;
        let Some(known) = &self.known else { return };
        for session in self.failure_detector.over(&known.record) {
            self.locks.sessions.end(session, LockLoss::Evicted);
        }
    }

    /// Returns the time of the next check, if no event comes before.
    fn alarm(&self) -> Instant {
        let now = Instant::now();
        let is_used = !self.locals.is_empty() || self.failure_detector.is_needed();
        let mut alarm = if is_used { now + KEEP } else { self.busy_since + KEEP };
        for local in self.locals.values() {
            alarm = alarm.min(local.session.end());
            if let ClaimState::Held { since, .. } = &local.state
                && !self.watch.is_started()
            {
                alarm = alarm.min(*since + LONG_HELD);
            }
        }
        if let Some(since) = self.verifies {
            alarm = alarm.min(since + Deadline::DEFAULT);
        }
        if let Some(next) = self.failure_detector.alarm() {
            alarm = alarm.min(next);
        }
        // Lets other tasks run, even if something is always due.
        alarm.max(now + Duration::from_millis(1))
    }

    fn is_idle(&self) -> bool {
        self.locals.is_empty()
            && !self.failure_detector.is_needed()
            && self.busy_since.elapsed() >= KEEP
    }
}
