//! The writer thread: group commits, expiries, and the upkeep of stores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use ::redb::TransactionError;

use super::failure::Failure;
use super::job::{Job, Outcome};
use super::options::Mode;
use super::shared::{Shared, State};
use super::tables::StoreId;
use super::transaction::{Summary, Transaction};
use super::view::View;
use crate::store::lock;

/// Maximum number of jobs and bytes of one commit.
const COMMIT_JOBS: usize = 1024;
const COMMIT_BYTES: usize = 8 * 1024 * 1024;

/// Maximum number of entries that one commit expires, removes or changes beside its jobs, so that
/// writers wait for a short time only.
const UPKEEP: usize = 1000;

/// Maximum time until the next expiry is compared with the clock again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Interval between two tries to acquire the lock of the writers of a shared file.
const TRY_AGAIN: Duration = Duration::from_millis(1);

impl Shared {
    /// Commits until the engine is closed, then closes the database.
    pub(super) fn run_writer(&self) {
        let mut last_failed = false;
        while self.wait_for_work(last_failed) {
            if self.folder.mode().is_read_only() {
                continue;
            }
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit()));
            last_failed = committed.as_ref().is_ok_and(|committed| !committed);
            if committed.is_err() {
                tracing::error!(path = %self.folder.file().display(), "writing to a database panicked");
                self.interrupt();
                last_failed = true;
            }
        }
        let state = std::mem::replace(
            &mut *self.database.write().unwrap_or_else(PoisonError::into_inner),
            State::Closed,
        );
        if let State::Open(opened) = state
            && let Err(failure) = opened.close()
        {
            tracing::warn!(?failure, path = %self.folder.file().display(), "closing a database failed");
        }
        self.folder.leave();
        self.is_ended.send_replace(true);
    }

    /// Waits until there is something to commit. Returns `false` at the end.
    fn wait_for_work(&self, last_failed: bool) -> bool {
        let mut writes = lock(&self.writes);
        loop {
            writes.jobs.retain(|job| !job.is_withdrawn());
            if !writes.jobs.is_empty() {
                return true;
            }
            if writes.is_closed {
                return false;
            }
            let due = writes.next_due.filter(|_| !self.folder.mode().is_read_only());
            // Bounded, because the system clock can be set, and runs on while the system sleeps.
            let until = |due: u64| Duration::from_nanos(due.saturating_sub(Self::now()));
            let wait = due.map(|due| until(due).min(LOOK_AGAIN));
            let has_upkeep = (writes.collects || !writes.changed.is_empty())
                && !self.folder.mode().is_read_only();
            // After a failure only a caller tries again at once.
            let wait = if last_failed {
                Some(Duration::from_secs(1))
            } else if has_upkeep {
                return true;
            } else {
                wait
            };
            writes = match wait {
                Some(wait) if wait.is_zero() => return true,
                Some(wait) => {
                    let (guard, timeout) = self
                        .wakes_writer
                        .wait_timeout(writes, wait)
                        .unwrap_or_else(PoisonError::into_inner);
                    if last_failed && timeout.timed_out() {
                        return true;
                    }
                    guard
                }
                None => self.wakes_writer.wait(writes).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes the next jobs of one commit. They can no longer be withdrawn.
    fn take_jobs(&self) -> Vec<Box<dyn Job>> {
        let mut writes = lock(&self.writes);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < COMMIT_JOBS && bytes < COMMIT_BYTES {
            let Some(job) = writes.jobs.pop_front() else { break };
            if job.is_alone() && !taken.is_empty() {
                writes.jobs.push_front(job);
                break;
            }
            if job.take() {
                bytes += job.bytes();
                let is_alone = job.is_alone();
                taken.push(job);
                if is_alone {
                    break;
                }
            }
        }
        taken
    }

    /// Makes one commit. Returns whether it succeeded.
    fn commit(&self) -> bool {
        if let Err(failure) = self.reopen() {
            self.fail_all(&failure);
            return false;
        }
        let mark = fastrand::u64(..);
        let database = self.database();
        let State::Open(opened) = &*database else { return false };
        let transaction = loop {
            match opened.begin_write() {
                Ok(transaction) => break transaction,
                Err(TransactionError::WouldBlock) => {
                    if !self.has_work() {
                        return true;
                    }
                    // Another process writes. Jobs can be withdrawn until this one may write.
                    thread::sleep(TRY_AGAIN);
                }
                Err(error) => {
                    drop(database);
                    let failure = Failure::from(error);
                    self.interrupt();
                    self.fail_all(&failure);
                    return false;
                }
            }
        };
        let mut jobs = self.take_jobs();
        let mut committing = None;
        let result = self.folder.check_identity().and_then(|()| {
            let worked = self.work(&transaction, &mut jobs, mark)?;
            if worked.is_changed && !worked.is_rejected {
                committing = Some(worked.commits);
                transaction.commit()?;
                // A commit to a file that was removed meanwhile has not persisted anything.
                self.folder.check_identity()?;
            } else {
                transaction.abort()?;
            }
            Ok(worked)
        });
        drop(database);
        match result {
            Ok(worked) => {
                self.after(worked);
                jobs.into_iter().for_each(|job| job.finish(Outcome::Committed));
                true
            }
            Err(failure) => {
                self.interrupt();
                let committed = match committing {
                    Some(commits) => self.has_committed(mark, commits),
                    None => Some(false),
                };
                let outcome = match (&failure, committed) {
                    (Failure::Interfered(_), _) => Outcome::Failed(&failure),
                    (_, Some(true)) => {
                        self.notify();
                        Outcome::Committed
                    }
                    (_, Some(false)) => Outcome::Failed(&failure),
                    (_, None) => Outcome::Unknown(&failure),
                };
                jobs.into_iter().for_each(|job| job.finish(outcome));
                false
            }
        }
    }

    fn has_work(&self) -> bool {
        let mut writes = lock(&self.writes);
        writes.jobs.retain(|job| !job.is_withdrawn());
        !writes.jobs.is_empty()
            || (!writes.is_closed && (writes.collects || writes.next_due.is_some()))
    }

    /// Does the jobs and a piece of upkeep in a transaction.
    fn work(
        &self,
        transaction: &::redb::WriteTransaction,
        jobs: &mut [Box<dyn Job>],
        mark: u64,
    ) -> Result<Worked, Failure> {
        let (collects, changed) = {
            let writes = lock(&self.writes);
            (writes.collects, writes.changed.clone())
        };
        let mut tables = Transaction::begin(transaction, Self::now())?;
        let mut worked = Worked::default();
        let is_alone = jobs.iter().any(|job| job.is_alone());
        for job in jobs {
            worked.is_rejected |= job.run(&mut tables)? && is_alone;
        }
        if !is_alone {
            tables.expire_some(UPKEEP)?;
            worked.has_collected = collects && tables.collect_some(UPKEEP)?;
            for id in changed {
                if !tables.apply_limits_some(id, UPKEEP)? {
                    break;
                }
                worked.applied.push(id);
            }
        }
        let Summary { is_changed, commits, next_due } = tables.finish(mark)?;
        Ok(Worked { is_changed, commits, next_due, ..worked })
    }

    /// Notes the results of a commit.
    fn after(&self, worked: Worked) {
        {
            let mut writes = lock(&self.writes);
            writes.next_due = worked.next_due;
            writes.collects &= !worked.has_collected;
            writes.changed.retain(|id| !worked.applied.contains(id));
        }
        if worked.is_changed && !worked.is_rejected {
            self.notify();
        }
    }

    /// Returns whether the commit with this mark and this number has happened. Returns `None` if
    /// that cannot be known, because another process has committed since.
    fn has_committed(&self, mark: u64, number: u64) -> Option<bool> {
        self.reopen().ok()?;
        let database = self.database();
        let State::Open(opened) = &*database else { return None };
        let transaction = opened.begin_read().ok()?;
        let view = View::new(&transaction, 0, true);
        match (view.mark().ok()? == mark, view.commits().ok()? < number) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            // No other process can have made that commit.
            (false, false) if self.folder.mode() != Mode::Shared => Some(false),
            (false, false) => None,
        }
    }

    /// Answers all queued jobs with a failure. None of them has happened.
    fn fail_all(&self, failure: &Failure) {
        let jobs = std::mem::take(&mut lock(&self.writes).jobs);
        let taken = jobs.into_iter().filter(|job| job.take());
        taken.for_each(|job| job.finish(Outcome::Failed(failure)));
    }
}

/// The result of the work of one commit.
#[derive(Default)]
struct Worked {
    is_changed: bool,
    is_rejected: bool,
    /// Number of commits of the file, with this one.
    commits: u64,
    next_due: Option<u64>,
    has_collected: bool,
    applied: Vec<StoreId>,
}
