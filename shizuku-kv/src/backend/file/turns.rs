//! The turns of the processes that write to one folder.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Pause between two tries to acquire the lock of the writers of a shared file.
const PAUSE: Duration = Duration::from_millis(1);

/// Time for which a process commits before it lets a waiter go first. Each change of the writing
/// process costs about one commit, because the next one reads the state of the file again.
const TURN: Duration = Duration::from_millis(25);

/// The turns of this process.
///
/// redb grants its lock to the first process that tries. A process that always has work would
/// usually acquire it again before the next try of a waiter. So each waiter holds a shared lock of
/// the folder, by which the writing process sees it. The operating system releases that lock if the
/// waiter is killed.
pub(super) struct Turns {
    folder: Option<File>,
    /// Begin of the turn of this process, if it has waited for it.
    began: Option<Instant>,
}

impl Turns {
    /// Returns the turns of a writer of a shared file. Some systems have no locks of folders, so
    /// that chance decides there.
    pub(super) fn of(file: &Path) -> Self {
        let folder = file.parent().and_then(|folder| File::open(folder).ok());
        Self { folder, began: None }
    }

    /// Returns the turns of the only writer of a file.
    pub(super) fn alone() -> Self {
        Self { folder: None, began: None }
    }

    /// Begins a wait for the lock of the writers. Pauses first if this process has had its turn,
    /// and another one waits.
    pub(super) fn wait(&mut self) -> Wait<'_> {
        let has_ended = self.began.is_none_or(|began| began.elapsed() >= TURN);
        let is_contended = has_ended && self.has_waiters();
        let mut wait = Wait { turns: self, has_paused: false };
        if is_contended {
            wait.pause();
        }
        wait
    }

    /// Returns whether another process waits.
    fn has_waiters(&self) -> bool {
        let Some(folder) = &self.folder else { return false };
        match folder.try_lock() {
            Ok(()) => {
                let _ = folder.unlock();
                false
            }
            Err(error) => matches!(error, TryLockError::WouldBlock),
        }
    }
}

/// A wait for the lock of the writers. Dropping it ends the wait.
pub(super) struct Wait<'a> {
    turns: &'a mut Turns,
    has_paused: bool,
}

impl Wait<'_> {
    /// Waits until the next try. Other processes see the wait.
    pub(super) fn pause(&mut self) {
        self.has_paused = true;
        if let Some(folder) = &self.turns.folder {
            // Fails while another process looks for waiters. The next pause repeats it.
            let _ = folder.try_lock_shared();
        }
        thread::sleep(PAUSE);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if !self.has_paused {
            return;
        }
        self.turns.began = Some(Instant::now());
        if let Some(folder) = &self.turns.folder {
            let _ = folder.unlock();
        }
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use ::redb::{Builder, ConcurrencyMode};

    use super::super::place::FILE;
    use super::*;
    use crate::FileConnection;
    use crate::store::{Connection, Deadline};

    /// A stopped waiter would otherwise make each commit of the others slower.
    #[test]
    fn writer_pauses_once_a_turn_while_another_waits() {
        let folder = tempfile::tempdir().unwrap();
        let [mut writer, mut other] = [(); 2].map(|()| Turns::of(&folder.path().join(FILE)));
        let paused = |writer: &mut Turns| writer.wait().has_paused;
        assert!(!paused(&mut writer));
        let mut waiter = other.wait();
        waiter.pause();
        assert!(paused(&mut writer));
        // Far from its end, however slow the test is.
        writer.began = Some(Instant::now() + TURN * 10_000);
        assert!(!paused(&mut writer));
        writer.began = Instant::now().checked_sub(TURN);
        assert!(paused(&mut writer));
        drop(waiter);
        writer.began = None;
        assert!(!paused(&mut writer));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn waiting_connection_is_seen_until_it_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let url = format!("file:{}?shared=true", path.display());
        let store = FileConnection::open(&url).await.unwrap().store("config").await.unwrap();
        let mut builder = Builder::new();
        builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
        let other = builder.open(path.join(FILE)).unwrap();
        let transaction = other.begin_write().unwrap();
        let put = tokio::spawn({
            let store = store.clone();
            async move { store.put("key", "value").await }
        });
        let (turns, patience) = (Turns::of(&path.join(FILE)), Deadline::after(Deadline::DEFAULT));
        while !turns.has_waiters() {
            assert!(!patience.remaining().is_zero(), "the wait does not show itself");
            tokio::task::yield_now().await;
        }
        transaction.abort().unwrap();
        put.await.unwrap().unwrap();
        assert!(!turns.has_waiters());
    }
}
