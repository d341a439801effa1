//! What this process wants of one lock, made one compare-and-swap at a time. [`known`] is what it knows of the record.
//!
//! A task for each store and resource collects what callers want, applies all of it to the record as it was last known,
//! and writes that. When the swap is lost it reads and applies again; when nobody knows what became of it, too: a claim
//! that is in the record already is granted as it is. Callers talk to it over channels, so that one who leaves in the
//! middle leaves nothing half done.
//!
//! While claims of this process wait it watches the record, in which whoever lets go has handed over already, and the
//! sessions of those before them ([`super::observer`]).

mod known;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::ExponentialBackoff;
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::claims::{Command, Granted, Local, Pending, Refusal, Standing};
use super::course;
use super::error::LockLoss;
use super::following::Following;
use super::locks::{Locks, Place};
use super::observer::{Observer, Prospect};
use super::record::{ClaimId, GRANT_ROOM, LockRecord, SessionId};
use super::transition::{Change, Outcome};
use crate::store::{
    Deadline, FencingToken, Key, KvEntry, KvError, Store, VersionToken, WatchScope, backoff,
};

/// How long a coordinator with nothing to do remembers the record, for the next claim to take one round trip.
const KEEP: Duration = Duration::from_secs(10);

/// After this long a lock that is held is watched, so that its holder learns of it when it is broken.
const LONG_HELD: Duration = Duration::from_secs(1);

/// How long after a swap was lost the watch may take to tell what took its place. It is on its way already.
const NEWS: Duration = Duration::from_millis(20);

/// How long somebody else's change is waited for, where others claim too.
const PASS: Duration = Duration::from_millis(1);

/// So often a read that is older than what was seen is repeated, before a watch is opened to settle it.
const STALE_READS: u32 = 4;

/// The record as it was last seen.
#[derive(Clone, Debug)]
struct Known {
    record: LockRecord,
    /// None where there is no entry.
    version: Option<VersionToken>,
    /// Whether the entry has expired, because the store was given a maximum age. Creating another
    /// entry asks the store whether that is over.
    has_expired: bool,
}

pub(super) struct Coordinator {
    locks: Arc<Locks>,
    place: Place,
    store: Store,
    pending: Vec<Pending>,
    locals: HashMap<ClaimId, Local>,
    /// Number of claims that have arrived.
    arrivals: u64,
    /// Notified when everything is released, because the connection is shut down.
    closing: Vec<oneshot::Sender<()>>,
    is_closed: bool,
    known: Option<Known>,
    /// The newest version that was seen of it.
    newest: Option<VersionToken>,
    /// A write on this version was sent, and nobody knows what became of it: until another write has taken the version's
    /// place it may still arrive.
    unsure: Option<Option<VersionToken>>,
    /// There while the store does not answer.
    pauses: Option<ExponentialBackoff>,
    /// Swaps lost in a row.
    conflicts: u32,
    /// When a swap was last lost: others use the lock too, and what they do is watched for a while.
    contended: Option<Instant>,
    watch: Following,
    /// The newest version that had been seen when the watch was opened.
    opened_at: Option<VersionToken>,
    /// What the watch has delivered of the state, until that is complete.
    state: Option<Option<KvEntry>>,
    /// Since when what was read is older than what was seen: the watch is to tell whether the store was made again.
    verifies: Option<Instant>,
    /// What is known has to be looked at again.
    looks: bool,
    observer: Observer,
    /// When there was last something to do.
    busy_since: Instant,
    /// The last to be dropped: who finds this closed finds that the claims are over too.
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Coordinator {
    pub(super) fn new(
        locks: Arc<Locks>,
        place: Place,
        store: Store,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let watch = Following::new(&store, WatchScope::Key(place.1.clone()));
        let observer = Observer::new(&store);
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
            observer,
            busy_since: Instant::now(),
            commands,
        }
    }

    /// The key of the record.
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
                // Each may save a swap that would be lost.
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
                    // The registry holds a sender for as long as this runs.
                    None => return,
                },
                event = self.watch.next() => self.follow_up(event),
                () = self.observer.next() => {}
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
                let standing = Standing::Claiming { waits, sent: false, hopes: false, reply };
                self.arrivals += 1;
                let local =
                    Local { claim, session, arrival: self.arrivals, in_line, hope, standing };
                self.locals.insert(local.claim.id, local);
            }
            Command::Leave { id, reply } => self.leave(id, reply),
            Command::Downgrade { id, reply } => {
                self.pending.push(Pending::of(Change::Downgrade(id), Some(reply)));
            }
            Command::Break { reply } => {
                // Of whoever holds it now, which what is known may not say.
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
            // It is not asked for any more; whether it has been, nobody may know.
            self.locals.remove(&id);
            if !was_sent {
                return Pending::of(Change::Leave(id), reply).answer(Ok(Outcome::NotThere));
            }
        }
        self.pending.push(Pending { session, ..Pending::of(Change::Leave(id), reply) });
    }

    /// Claims whose session is over are told, and taken out as far as that can be done.
    fn leave_what_is_over(&mut self) {
        let over: Vec<_> = self
            .locals
            .iter()
            .filter(|(_, local)| local.session.loss().is_some())
            .map(|(id, _)| *id)
            .collect();
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

    /// One try to write all that is wanted.
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
            // What was sent, and may have been done, is not extended to those who came since.
            let newest = FencingToken::from_u64(record.fence);
            for pending in self.pending.iter_mut().filter(|pending| !pending.sent) {
                if let Change::Break { newest: of_old } = &mut pending.change {
                    *of_old = newest;
                }
            }
            let due = self.due(&record);
            if !due.is_empty() {
                // There may be room in the same write.
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
                if let Standing::Claiming { waits, .. } = &local.standing {
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
                self.unsure.is_some_and(|expected| course::may_land(expected, known.version));
            if record == known.record && !must_write {
                // What was known may be of long ago.
                if !is_of_now {
                    self.known = None;
                    continue;
                }
                return self.conclude(outcomes).await;
            }
            record.stamp(known.record.fence, SystemTime::now());
            let (expected, has_expired) = (known.version, known.has_expired);
            let value = record.to_bytes(expected);
            // Each waiter gets a token one day, and needs room for it. Waiting readers already have
            // that room; of the writers, only one at a time needs it.
            let room = value.len() + GRANT_ROOM;
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
                    self.known = Some(Known { record, version: Some(version), has_expired: false });
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

    /// Whatever is wanted goes out with the next write.
    fn note_sent(&mut self, claims: &[ClaimId]) {
        for id in claims {
            let standing = self.locals.get_mut(id).map(|local| &mut local.standing);
            if let Some(Standing::Claiming { sent, .. }) = standing {
                *sent = true;
            }
        }
    }

    /// What is to be taken out of a record, whoever wants it: sessions that are over, and what is of this process and known
    /// to nobody here. That is nobody's: a write that was given up has landed late. Its session lives, so that no other
    /// process takes it out.
    fn due(&self, record: &LockRecord) -> Vec<Change> {
        let mut due: Vec<_> = self.observer.over(record).into_iter().map(Change::Evict).collect();
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
        let held = Standing::Held { broken, since: Instant::now() };
        let (Standing::Claiming { reply, .. } | Standing::Waiting(reply)) =
            std::mem::replace(&mut local.standing, held)
        else {
            return;
        };
        // Who is gone has said so, or will: its place is given back then.
        let _ = reply.send(Ok(Granted { token, broken: receiver }));
    }

    /// Reports each outcome to its caller. If a claim does not wait for long, and sessions in its
    /// way may be dead, the claim is given the time to find that out.
    async fn conclude(&mut self, outcomes: Vec<(Outcome, Change, Option<ClaimId>)>) {
        if outcomes.iter().any(|(outcome, _, _)| *outcome == Outcome::Busy) {
            self.look_before(None).await;
        }
        self.settle(outcomes);
        let hasty = self
            .locals
            .values()
            .find(|local| local.hope.is_hasty && matches!(local.standing, Standing::Waiting(_)));
        if let Some(id) = hasty.map(|local| local.claim.id) {
            self.look_before(Some(id)).await;
        }
    }

    /// Reads the unknown sessions before a claim in line, or before a claim that arrives now, as
    /// long as none of the others is alive.
    async fn look_before(&mut self, claim: Option<ClaimId>) {
        let own = self.own();
        while let Some(Known { record, .. }) = &self.known {
            let index = record.queue.iter().position(|waiting| Some(waiting.id) == claim);
            let index = index.unwrap_or(record.queue.len());
            let Prospect::Unknown(sessions) = self.observer.prospect(record, index, &own) else {
                return;
            };
            // The entry of a session that has ended shows a time as well.
            if self.observer.look(&sessions, own.first().copied()).await.is_err() {
                return;
            }
        }
    }

    /// Returns the sessions of the claims of this process.
    fn own(&self) -> Vec<SessionId> {
        self.locals.keys().map(|id| id.session).collect()
    }

    /// Tells everybody what became of what they wanted.
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
                    self.observer.keep_vigil();
                    let is_full = outcome == Outcome::Full;
                    let prospect = self.known.as_ref().map(|known| {
                        self.observer.prospect(&known.record, known.record.queue.len(), &self.own())
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

    /// Somebody else was first. What the record is now the watch tells, where there is one, sooner than a read would.
    ///
    /// Where many claim at once, each swap that is won makes all others lose theirs. So those who have lost let some of the
    /// others' changes pass, more of them the more often they have lost; but whoever lets go does not wait.
    async fn lose(&mut self) {
        self.contended = Some(Instant::now());
        self.conflicts = self.conflicts.saturating_add(1);
        // What is read may be what was refused, for as long as a replica is behind: a watch tells more.
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

    /// The store did not do it.
    async fn trouble(&mut self, error: KvError) {
        tracing::debug!(store = self.store.name(), key = %self.key(), %error, "a lock cannot be changed for now");
        let is_passing = error.is_retryable() || matches!(error, KvError::OutcomeUnknown { .. });
        if !is_passing {
            let refusal = Refusal::Store(error);
            self.refuse_claims(&refusal);
            let answers = self.pending.iter_mut().filter_map(|pending| pending.reply.take());
            for reply in answers {
                // Who is gone does not want to know.
                let _ = reply.send(Err(refusal.clone()));
            }
            let is_gone = matches!(
                refusal,
                Refusal::Store(KvError::Closed { .. } | KvError::StoreNotFound { .. })
            );
            if self.is_closed && is_gone {
                // There is nothing left to be released.
                self.pending.clear();
            }
        }
        self.locals.values().for_each(|local| local.tell_hope(false));
        // What is known may be so no longer, and nothing need follow that would tell.
        (self.known, self.looks) = (None, !self.locals.is_empty() || self.observer.is_needed());
        // Who holds is not out because of this. Who wants to leave is out with its session, if not before.
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

    fn refuse_claims(&mut self, refusal: &Refusal) {
        let ids: Vec<_> = self
            .locals
            .iter()
            .filter(|(_, local)| local.is_claiming())
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            // Those that may be in the record all the same are taken out.
            let session = self.locals.get(&id).map(|local| local.session.clone());
            let Some(local) = self.locals.remove(&id) else { continue };
            if local.was_sent() {
                self.pending.push(Pending { session, ..Pending::of(Change::Leave(id), None) });
            }
            local.refuse(refusal.clone());
        }
    }

    /// Ends sessions of which nothing is heard, and learns of those of this process that others have ended.
    async fn bury(&mut self) {
        self.observer.end_silent().await;
        let Some(known) = &self.known else { return };
        for session in self.observer.over(&known.record) {
            self.locks.sessions.end(session, LockLoss::Evicted);
        }
    }

    /// When to look again, if nothing happens before.
    fn alarm(&self) -> Instant {
        let now = Instant::now();
        let is_used = !self.locals.is_empty() || self.observer.is_needed();
        let mut alarm = if is_used { now + KEEP } else { self.busy_since + KEEP };
        for local in self.locals.values() {
            alarm = alarm.min(local.session.end());
            if let Standing::Held { since, .. } = &local.standing
                && !self.watch.is_started()
            {
                alarm = alarm.min(*since + LONG_HELD);
            }
        }
        if let Some(since) = self.verifies {
            alarm = alarm.min(since + Deadline::DEFAULT);
        }
        if let Some(next) = self.observer.alarm() {
            alarm = alarm.min(next);
        }
        // Where there is always something that is due, others run as well.
        alarm.max(now + Duration::from_millis(1))
    }

    fn is_idle(&self) -> bool {
        self.locals.is_empty() && !self.observer.is_needed() && self.busy_since.elapsed() >= KEEP
    }
}
