//! The coordinator's cached record of its lock, from reads and from the watch. It never goes back
//! to before the newest version seen.

use std::time::Duration;

use tokio::time::Instant;

use super::super::claims::{ClaimState, Local, Pending, Refusal};
use super::super::error::LockLoss;
use super::super::failure_detector::{Line, Prospect};
use super::super::lease;
use super::super::record::{LockRecord, SessionId};
use super::super::session::{is_later, is_older};
use super::super::transition::Change;
use super::{CachedRecord, Coordinator, KEEP, LONG_HELD, STALE_READS};
use crate::store::{KvEntry, KvError, KvOperation, KvResult};
use crate::watch::Event;

impl Coordinator {
    /// Reads the record from the leader.
    pub(super) async fn read(&mut self) -> KvResult<()> {
        let mut found = self.store.leader_entry(self.key()).await?;
        let mut version = found.as_ref().map(|entry| entry.version);
        for _ in 0..STALE_READS {
            if !is_older(version, self.newest) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(2..20))).await;
            found = self.store.leader_entry(self.key()).await?;
            version = found.as_ref().map(|entry| entry.version);
        }
        if is_older(version, self.newest) {
            // Either a replaced leader does not know yet that it was replaced, or the store was
            // recreated and its versions count from the start. A watch that is opened now delivers
            // all acknowledged writes.
            self.watch.stop();
            self.start_watch();
            self.verifies = Some(Instant::now());
            let reason = "the answer is older than what was seen".to_owned();
            return Err(KvError::Unavailable { operation: "read a lock", reason, source: None });
        }
        (self.pauses, self.looks) = (None, false);
        self.newest = version;
        self.learn(found);
        Ok(())
    }

    pub(super) fn start_watch(&mut self) {
        if !self.watch.is_started() {
            (self.opened_at, self.state) = (self.newest, None);
            self.watch.start();
        }
    }

    /// Uses a record that was read elsewhere, unless one was already seen. It may be stale.
    pub(super) fn find(&mut self, entry: KvEntry) {
        if self.newest.is_none() {
            self.newest = Some(entry.version);
            self.learn(Some(entry));
        }
    }

    /// Caches the record of an entry, and compares it with the claims of this process.
    fn learn(&mut self, entry: Option<KvEntry>) {
        let version = entry.as_ref().map(|entry| entry.version);
        if let Some(expected) = self.unsure {
            let is_tombstone = entry.as_ref().is_some_and(KvEntry::is_tombstone);
            self.unsure = match expected {
                // A write that expects no entry lands over a tombstone too.
                None if is_tombstone => Some(version),
                _ => Some(expected).filter(|expected| lease::may_land(*expected, version)),
            };
        }
        let has_expired =
            entry.as_ref().is_some_and(|entry| entry.operation == KvOperation::Expire);
        let record = match entry.filter(|entry| !entry.is_tombstone()) {
            None => LockRecord::default(),
            Some(entry) => match LockRecord::from_bytes(&entry.value) {
                Ok(record) => record,
                Err(reason) => return self.find_foreign(reason),
            },
        };
        self.known = Some(CachedRecord { record, version, has_expired });
        self.compare();
    }

    /// Rejects all requests, because the entry is not a lock record. The entry is left as it is.
    fn find_foreign(&mut self, reason: String) {
        self.known = None;
        for (_, local) in self.locals.drain() {
            local.refuse(Refusal::Foreign(reason.clone()));
        }
        for pending in self.pending.drain(..) {
            pending.answer(Err(Refusal::Foreign(reason.clone())));
        }
    }

    /// Compares the record with the claims of this process: grants, revokes, or claims again.
    pub(super) fn compare(&mut self) {
        let Some(CachedRecord { record, .. }) = &self.known else { return };
        let mut granted = Vec::new();
        let mut gone = Vec::new();
        for (id, local) in &mut self.locals {
            let grant = record.grant(*id);
            let is_waiting = || record.queue.iter().any(|claim| claim.id == *id);
            match (&local.state, grant) {
                (ClaimState::Waiting(_), Some(grant)) => granted.push((*id, grant.token)),
                // The record was removed, or written by a client that does not follow the protocol.
                (ClaimState::Waiting(_), None) if !is_waiting() => local.claim_again(),
                (ClaimState::Held { .. }, None) => gone.push(*id),
                _ => {}
            }
        }
        for (id, token) in granted {
            self.grant(id, token);
        }
        for id in gone {
            if let Some(local) = self.locals.remove(&id) {
                local.refuse(Refusal::SessionOver);
            }
        }
    }

    /// Watches the record while its changes matter, and the sessions before the waiting claims.
    pub(super) fn follow(&mut self) {
        let now = Instant::now();
        let is_wanted = self.locals.values().any(|local| match &local.state {
            ClaimState::Held { since, .. } => *since + LONG_HELD <= now,
            ClaimState::Claiming { .. } | ClaimState::Waiting(_) => true,
        });
        let own = self.own();
        if let Some(known) = &self.known {
            let hopes = self.locals.values().any(Local::is_hoping);
            let waits = |local: &Local| matches!(local.state, ClaimState::Waiting(_));
            let is_hasty = |local: &Local| waits(local) && local.hope.is_hasty;
            let line = Line {
                waits: self.locals.values().any(waits),
                hopes,
                is_hasty: hopes || self.locals.values().any(is_hasty),
            };
            self.failure_detector.look_at(&known.record, &own, line);
        }
        self.hope(&own);
        let is_contended = self.contended.is_some_and(|since| since.elapsed() < KEEP);
        if is_wanted || is_contended || self.failure_detector.is_needed() {
            self.start_watch();
        }
    }

    /// Notifies claimants whether the sessions in their way may be dead.
    fn hope(&mut self, own: &[SessionId]) {
        let Some(CachedRecord { record, .. }) = &self.known else {
            self.looks |= self.locals.values().any(Local::is_hoping);
            return;
        };
        let mut alive = Vec::new();
        for (id, local) in &mut self.locals {
            let index = record.queue.iter().position(|claim| claim.id == *id);
            let is_waiting = matches!(local.state, ClaimState::Waiting(_));
            if !local.is_hoping() && !is_waiting {
                continue;
            }
            match self.failure_detector.prospect(record, index.unwrap_or(record.queue.len()), own) {
                Prospect::Free if !is_waiting => local.set_hoping(false),
                Prospect::Free | Prospect::MayBeDead => local.tell_hope(true),
                Prospect::Unknown(_) | Prospect::Alive if is_waiting => local.tell_hope(false),
                Prospect::Unknown(_) | Prospect::Alive => alive.push(*id),
            }
        }
        for id in alive {
            if let Some(local) = self.locals.remove(&id) {
                // The claim may still be in the record if the outcome of a write with it is
                // unknown.
                if local.was_sent() {
                    let session = Some(local.session.clone());
                    self.pending.push(Pending { session, ..Pending::of(Change::Leave(id), None) });
                }
                local.refuse(Refusal::Busy);
            }
        }
    }

    pub(super) fn follow_up(&mut self, event: Event) {
        match event {
            Event::Opened => self.state = Some(None),
            Event::LinkChanged => {}
            Event::CaughtUp { .. } => {
                self.verifies = None;
                let Some(found) = self.state.take() else { return };
                let version = found.as_ref().map(|entry| entry.version);
                if is_older(version, self.opened_at) {
                    // The initial state is older than the newest version seen before the watch was
                    // opened. So this is another store, which has no session of this process
                    // either.
                    tracing::debug!(store = self.store.name(), key = %self.key(), "the store was made again");
                    for session in self.locks.sessions.of_runtime(self.place.0) {
                        self.locks.sessions.end(session, LockLoss::StoreGone);
                    }
                    self.failure_detector.forget();
                    (self.newest, self.unsure, self.looks) = (version, None, false);
                    self.learn(found);
                }
            }
            Event::Update(update) => {
                let Some(entry) = update.into_entry() else { return };
                if let Some(state) = &mut self.state {
                    *state = Some(entry.clone());
                }
                if self.newest.is_none_or(|newest| is_later(entry.version, newest)) {
                    self.newest = Some(entry.version);
                    self.learn(Some(entry));
                }
            }
            Event::Lost(error) | Event::Closed(error) => {
                if matches!(error, KvError::Unauthorized { .. }) {
                    self.refuse_waiting(&error);
                }
                (self.opened_at, self.state, self.verifies) = (self.newest, None, None);
                (self.known, self.looks) = (None, true);
            }
        }
    }
}
