//! The writer thread: group commits, expiries, and the upkeep of stores.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Duration;

use ::redb::TransactionError;

use super::failure::Failure;
use super::job::{Job, Outcome};
use super::options::Mode;
use super::shared::{Shared, State};
use super::tables::StoreId;
use super::transaction::{Summary, Transaction};
use super::turns::Turns;
use super::upkeep::Budget;
use super::view::View;
use crate::store::lock;

/// Maximum number of jobs and bytes of one commit.
const COMMIT_JOBS: usize = 1024;
const COMMIT_BYTES: usize = 8 * 1024 * 1024;

/// Maximum time for which the writer sleeps while there is a watch or an expiry. The clock may have
/// been set forward meanwhile, the machine suspended, or the file replaced.
const SLEEP: Duration = Duration::from_secs(1);

/// The result of a try to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Committed {
    Done,
    /// An atomic write had the commit for itself, so that upkeep has to follow.
    WithoutUpkeep,
    Failed,
}

impl Shared {
    /// Commits until the engine is closed, then closes the database.
    pub(super) fn run_writer(&self) {
        let mut last = Committed::Done;
        let mut turns = match self.folder.mode() {
            Mode::Shared => Turns::of(self.folder.file()),
            Mode::Single | Mode::Exclusive | Mode::ReadOnly => Turns::alone(),
        };
        while self.wait_for_work(last == Committed::Failed) {
            if self.folder.mode().is_read_only() {
                continue;
            }
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit(last, &mut turns)));
            last = committed.unwrap_or_else(|_| {
                let path = self.folder.file().display();
                tracing::error!(%path, "panicked while writing to a database");
                self.interrupt();
                Committed::Failed
            });
        }
        let mut database = self.exclusively();
        let state = std::mem::replace(&mut *database, State::Closed);
        // A successor writes its own file as soon as the database is closed.
        self.folder.leave();
        if let State::Open(opened) = state
            && let Err(failure) = opened.close()
        {
            let path = self.folder.file().display();
            tracing::warn!(?failure, %path, "cannot close a database");
        }
        drop(database);
        self.is_ended.send_replace(true);
    }

    /// Returns whether there are jobs that were not withdrawn. Drops the others.
    fn has_jobs(&self) -> bool {
        let (withdrawn, has_jobs) = {
            let mut writes = lock(&self.writes);
            let (withdrawn, left): (VecDeque<_>, _) =
                writes.jobs.drain(..).partition(|job| job.is_withdrawn());
            writes.jobs = left;
            (withdrawn, !writes.jobs.is_empty())
        };
        // Dropped without the lock. A job may hold the last handle on the database.
        drop(withdrawn);
        has_jobs
    }

    /// Waits until there is something to commit. Returns `false` once the engine is closed.
    fn wait_for_work(&self, last_failed: bool) -> bool {
        let is_read_only = self.folder.mode().is_read_only();
        let mut is_after_failure = last_failed;
        loop {
            if self.has_jobs() {
                return true;
            }
            let writes = lock(&self.writes);
            // A job may have been queued since the check.
            if !writes.jobs.is_empty() {
                continue;
            }
            if writes.is_closed {
                return false;
            }
            // After a failure, only a job retries at once. Upkeep waits.
            if !is_after_failure && !is_read_only && writes.is_upkeep_due(Self::now()) {
                return true;
            }
            let due = writes.next_due.filter(|_| !is_read_only);
            let wait = due.map(|due| Duration::from_nanos(due.saturating_sub(Self::now())));
            let is_watched = self.changes.is_watched();
            let wait = match wait {
                _ if is_after_failure => Some(SLEEP),
                Some(wait) => Some(wait.min(SLEEP)),
                None => is_watched.then_some(SLEEP),
            };
            let timed_out = match wait {
                Some(wait) => {
                    let woken = self.wakes_writer.wait_timeout(writes, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).1.timed_out()
                }
                None => {
                    drop(self.wakes_writer.wait(writes).unwrap_or_else(PoisonError::into_inner));
                    false
                }
            };
            is_after_failure &= !timed_out;
            if timed_out && is_watched && self.folder.check_identity().is_err() {
                // The reads of the watches return the error.
                self.changes.notify_all();
            }
        }
    }

    /// Takes the next jobs of one commit. They can no longer be withdrawn.
    fn take_jobs(&self) -> Vec<Box<dyn Job>> {
        let (mut taken, mut bytes, mut withdrawn) = (Vec::new(), 0, Vec::new());
        {
            let mut writes = lock(&self.writes);
            while taken.len() < COMMIT_JOBS && bytes < COMMIT_BYTES {
                let Some(job) = writes.jobs.pop_front() else { break };
                let is_alone = job.is_alone();
                if is_alone && !taken.is_empty() {
                    writes.jobs.push_front(job);
                    break;
                }
                if !job.take() {
                    withdrawn.push(job);
                    continue;
                }
                bytes += job.bytes();
                taken.push(job);
                if is_alone {
                    break;
                }
            }
        }
        // Without the lock, as in `has_jobs`.
        drop(withdrawn);
        taken
    }

    /// Makes one commit.
    fn commit(&self, last: Committed, turns: &mut Turns) -> Committed {
        let mark = fastrand::u64(..);
        let mut has_retried = false;
        let mut wait = turns.wait();
        let (database, mut transaction) = loop {
            if let Err(failure) = self.reopen() {
                self.fail_all(&failure);
                return Committed::Failed;
            }
            let database = self.database();
            let State::Open(opened) = &*database else { continue };
            match opened.begin_write() {
                Ok(transaction) => break (database, transaction),
                Err(TransactionError::WouldBlock) => {
                    // Another process writes. Jobs can be withdrawn until this one may write.
                    drop(database);
                    if !self.has_jobs() && !self.has_upkeep() {
                        return last;
                    }
                    wait.pause();
                }
                Err(error) => {
                    drop(database);
                    let failure = Failure::from(error);
                    self.interrupt();
                    // A read may have failed before. redb then rejects every later operation.
                    if failure.is_io() && !std::mem::replace(&mut has_retried, true) {
                        continue;
                    }
                    self.fail_all(&failure);
                    return Committed::Failed;
                }
            }
        };
        drop(wait);
        // Atomic writes in a row would otherwise keep expiries from happening.
        let owes_upkeep = last == Committed::WithoutUpkeep && self.has_upkeep();
        let mut jobs = if owes_upkeep { Vec::new() } else { self.take_jobs() };
        let is_alone = jobs.iter().any(|job| job.is_alone());
        let mut committing = None;
        let result = self.folder.is_large().and_then(|is_large| {
            transaction.set_quick_repair(is_large);
            let worked = self.work(&transaction, &mut jobs, is_alone, mark)?;
            if worked.summary.is_changed && !worked.is_rejected {
                committing = Some(worked.summary.commits);
                if let Some(cache) = &self.cache {
                    cache.begin(&worked.summary.touched);
                }
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
                if let Some(cache) = &self.cache {
                    cache.end(&worked.summary.touched);
                }
                self.after(worked);
                jobs.into_iter().for_each(|job| job.finish(Outcome::Committed));
                if is_alone { Committed::WithoutUpkeep } else { Committed::Done }
            }
            Err(failure) => {
                self.interrupt();
                let committed = match committing {
                    Some(commits) => self.has_committed(mark, commits),
                    None => Some(false),
                };
                let outcome = match (&failure, committed) {
                    (Failure::Interfered(_), _) => Outcome::Failed(&failure),
                    (_, Some(true)) => Outcome::Committed,
                    (_, Some(false)) => Outcome::Failed(&failure),
                    (_, None) => Outcome::Unknown(&failure),
                };
                jobs.into_iter().for_each(|job| job.finish(outcome));
                Committed::Failed
            }
        }
    }

    /// Returns whether upkeep is due, unless the engine is closed.
    fn has_upkeep(&self) -> bool {
        let writes = lock(&self.writes);
        !writes.is_closed && writes.is_upkeep_due(Self::now())
    }

    /// Does the jobs and a piece of upkeep in a transaction.
    fn work(
        &self,
        transaction: &::redb::WriteTransaction,
        jobs: &mut [Box<dyn Job>],
        is_alone: bool,
        mark: u64,
    ) -> Result<Worked, Failure> {
        let (resumes, collects, mut changed) = {
            let mut writes = lock(&self.writes);
            // Taken, because a store can change again before the end of the commit.
            let changed = if is_alone { Vec::new() } else { std::mem::take(&mut writes.changed) };
            (writes.resumes, writes.collects, changed)
        };
        let mut tables = Transaction::begin(transaction, Self::now())?;
        let (mut is_rejected, mut has_collected, mut applied) = (false, false, Vec::new());
        if !is_alone {
            // Before the jobs, because what has expired takes the room of new values.
            tables.expire_some(&mut Budget::new())?;
        }
        for job in jobs {
            is_rejected |= job.run(&mut tables)? && is_alone;
        }
        if !is_alone {
            let mut budget = Budget::new();
            has_collected = collects && tables.collect_some(&mut budget)?;
            if resumes {
                changed.extend(tables.unfinished_limits()?);
            }
            for id in &changed {
                if !tables.apply_limits_some(*id, &mut budget)? {
                    break;
                }
                applied.push(*id);
            }
        }
        let summary = tables.finish(mark)?;
        changed.retain(|id| !applied.contains(id));
        let has_resumed = resumes && !is_alone;
        Ok(Worked { summary, is_rejected, has_collected, has_resumed, changed })
    }

    /// Notes the results of a commit.
    fn after(&self, worked: Worked) {
        // Nothing of a rejected atomic write has happened.
        if worked.is_rejected {
            return;
        }
        let Summary { is_changed, next_due, stores, limits_changed, has_deleted, .. } =
            worked.summary;
        {
            let mut writes = lock(&self.writes);
            writes.next_due = next_due;
            writes.collects = (writes.collects && !worked.has_collected) || has_deleted;
            writes.resumes &= !worked.has_resumed;
            for id in worked.changed.into_iter().chain(limits_changed) {
                if !writes.changed.contains(&id) {
                    writes.changed.push(id);
                }
            }
        }
        if is_changed {
            self.changes.notify(stores);
        }
    }

    /// Returns whether the commit with this mark and this number has happened. Returns `None` if
    /// that cannot be known.
    fn has_committed(&self, mark: u64, number: u64) -> Option<bool> {
        self.reopen().ok()?;
        let database = self.database();
        let State::Open(opened) = &*database else { return None };
        let transaction = opened.begin_read().ok()?;
        let view = View::new(&transaction, 0, true);
        has_happened((mark, number), (view.mark().ok()?, view.commits().ok()?))
    }

    /// Answers all queued jobs with a failure. None of them has happened.
    fn fail_all(&self, failure: &Failure) {
        let jobs = std::mem::take(&mut lock(&self.writes).jobs);
        let taken = jobs.into_iter().filter(|job| job.take());
        taken.for_each(|job| job.finish(Outcome::Failed(failure)));
    }
}

/// Returns whether a commit has happened, from its mark and number and those of the last commit of
/// the file. Returns `None` if another process has made a later commit, which it can in every mode:
/// the lock of the file is free until the database is opened again.
fn has_happened((mark, number): (u64, u64), (last_mark, last): (u64, u64)) -> Option<bool> {
    match last.cmp(&number) {
        _ if last_mark == mark => Some(true),
        // Otherwise the file would have the commit. Another process may have made that number.
        Ordering::Less | Ordering::Equal => Some(false),
        Ordering::Greater => None,
    }
}

/// The result of the work of one commit.
struct Worked {
    summary: Summary,
    is_rejected: bool,
    has_collected: bool,
    has_resumed: bool,
    /// Stores to which new settings have not been applied.
    changed: Vec<StoreId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_follows_from_the_last_commit_of_the_file() {
        const THIS: (u64, u64) = (7, 5);
        assert_eq!(has_happened(THIS, THIS), Some(true));
        // The last commit before, and one of another process in place of this one.
        assert_eq!(has_happened(THIS, (8, 4)), Some(false));
        assert_eq!(has_happened(THIS, (8, 5)), Some(false));
        // Another process has committed after this one, or twice without it.
        assert_eq!(has_happened(THIS, (8, 6)), None);
    }
}
