//! Keeping writers out of a database, by a job that holds the write transaction.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::super::draft::BACKUP;
use super::super::failure::Failure;
use super::super::job::{NewJob, Outcome, Wait};
use super::super::shared::Shared;
use super::super::transaction::Transaction;
use super::fault::Fault;
use crate::store::KvError;

/// Maximum time for which writers are kept out.
const LIMIT: Duration = Duration::from_secs(1);

/// Timeout for acquiring the write transaction, and the interval at which the wait checks whether
/// the connection has ended.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// Keeps the writers of all processes out, for at most [`LIMIT`]. Dropping it lets them continue.
pub(super) struct Hold {
    _release: mpsc::Sender<()>,
    _wait: Wait<()>,
}

impl Hold {
    /// Waits until the write transaction is acquired. Blocks.
    pub(super) fn new(shared: &Shared) -> Result<Self, Fault> {
        if shared.folder.mode().is_read_only() {
            return Err(Fault::Behind);
        }
        let (release, released) = mpsc::channel();
        let (acquire, acquired) = mpsc::channel();
        let work = move |_: &mut Transaction<'_>| {
            let _ = acquire.send(());
            // Dropping the sender releases the hold.
            let _ = released.recv_timeout(LIMIT);
            // A rejected job that is alone is not committed.
            Ok(Err(KvError::closed(BACKUP)))
        };
        let file = shared.folder.file().to_owned();
        let error = move |outcome: Outcome<'_>| match outcome {
            Outcome::Committed => KvError::closed(BACKUP),
            Outcome::Failed(failure) | Outcome::Unknown(failure) => {
                failure.to_error(BACKUP, &file, None)
            }
        };
        let (job, mut wait) = NewJob { work, error, bytes: 0, is_alone: true }.queued();
        if !shared.queue_write(job) {
            return Err(Fault::Ended);
        }
        let mut waited = Duration::ZERO;
        while let Err(error) = acquired.recv_timeout(LOOK) {
            waited += LOOK;
            if shared.is_closed.load(Ordering::Acquire) {
                return Err(Fault::Ended);
            }
            if error == RecvTimeoutError::Disconnected {
                // The job has ended before it ran.
                return Err(match wait.answer.try_recv() {
                    Ok(Err(error)) => Fault::Held(error),
                    _ => Fault::Source(Failure::damaged("using it panicked")),
                });
            }
            if waited >= PATIENCE {
                return Err(Fault::Source(Failure::Busy(in_the_way(shared))));
            }
        }
        Ok(Self { _release: release, _wait: wait })
    }
}

/// Returns the reason why the write transaction could not be acquired.
fn in_the_way(shared: &Shared) -> String {
    shared.folder.in_the_way().unwrap_or_else(|| {
        let file = shared.folder.file().display();
        format!("{file} is being written for too long; repeat the call")
    })
}
