//! The threads that read.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

use ::redb::ReadTransaction;

use super::failure::Failure;
use super::queue::ReadJob;
use super::shared::{Shared, State};
use super::view::View;
use crate::store::lock;

/// Time of a transaction after which it begins no further read.
const READ_LIMIT: Duration = Duration::from_millis(10);

/// Maximum number of attempts of a read to open the database.
const TRIES: usize = 3;

impl Shared {
    pub(super) fn queue_read(&self, job: ReadJob, is_slice: bool) -> bool {
        {
            let mut reads = lock(&self.reads);
            if reads.is_closed {
                return false;
            }
            match is_slice {
                true => reads.slices.push_back(job),
                false => reads.short.push_back(job),
            }
        }
        self.wakes_reader.notify_one();
        true
    }

    /// Ends the threads that read.
    pub(super) fn close_reads(&self) {
        let unread = {
            let mut reads = lock(&self.reads);
            reads.is_closed = true;
            (std::mem::take(&mut reads.short), std::mem::take(&mut reads.slices))
        };
        self.wakes_reader.notify_all();
        // Dropped without the lock. Their callers get an answer.
        drop(unread);
    }

    pub(super) fn run_reader(&self) {
        while let Some((jobs, is_slice)) = self.take_reads() {
            // redb may panic over a damaged file, and cannot be used after that. The callers get an
            // error, and the thread stays.
            let read = AssertUnwindSafe(|| self.read_together(jobs));
            if catch_unwind(read).is_err() {
                let path = self.folder.file().display();
                tracing::error!(%path, "panicked while reading a database");
                self.interrupt();
            }
            if is_slice {
                lock(&self.reads).running_slices -= 1;
                self.wakes_reader.notify_one();
            }
        }
    }

    /// Waits for reads, and takes a share of them. Returns `None` at the end.
    fn take_reads(&self) -> Option<(VecDeque<ReadJob>, bool)> {
        let mut reads = lock(&self.reads);
        loop {
            if let Some(taken) = reads.take() {
                return Some(taken);
            }
            if reads.is_closed {
                return None;
            }
            reads = self.wakes_reader.wait(reads).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does reads in one transaction, or in several if they take long. Each begins after its reads
    /// were queued, so that they see every acknowledged write.
    fn read_together(&self, mut jobs: VecDeque<ReadJob>) {
        let hides_expired = self.folder.mode().is_read_only();
        while let Some(job) = jobs.pop_front() {
            match self.begin_read() {
                Ok(Some((_database, transaction))) => {
                    let view = View::new(&transaction, Self::now(), hides_expired);
                    let until = Instant::now() + READ_LIMIT;
                    job(Ok(&view));
                    while Instant::now() < until
                        && let Some(job) = jobs.pop_front()
                    {
                        job(Ok(&view));
                    }
                }
                Ok(None) => return,
                Err(failure) => job(Err(&failure)),
            }
        }
    }

    /// Begins a read of the file that is at the path. Returns `None` if the database is closed.
    ///
    /// Another thread may close the database after a failed commit. After an error of the disk,
    /// redb reads nothing more, so that the database is opened again.
    pub(super) fn begin_read(
        &self,
    ) -> Result<Option<(RwLockReadGuard<'_, State>, ReadTransaction)>, Failure> {
        let mut last = None;
        for _ in 0..TRIES {
            self.reopen()?;
            let at = Instant::now();
            self.folder.check_identity()?;
            if let Some(cache) = &self.cache {
                cache.confirm(at);
            }
            let database = self.database();
            match &*database {
                State::Open(opened) => match opened.begin_read() {
                    Ok(transaction) => return Ok(Some((database, transaction))),
                    Err(failure) if failure.is_io() => {
                        drop(database);
                        self.interrupt();
                        last = Some(failure);
                    }
                    Err(failure) => return Err(failure),
                },
                State::Interrupted => {}
                State::Closed => return Ok(None),
            }
        }
        Err(last.unwrap_or_else(|| {
            let file = self.folder.file().display();
            Failure::Busy(format!("{file} is closed after a failed write; repeat the call"))
        }))
    }
}
