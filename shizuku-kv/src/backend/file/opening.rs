//! Opening a database on a thread of its own, one at a time for each path: redb waits for a stopped
//! process without a limit, and a second thread would wait as well.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::engine::{Call, Engine};
use super::folder::Folder;
use super::options::Options;
use super::owner;
use super::shared::{Shared, no_thread};
use crate::store::timer::timeout_at;
use crate::store::{Deadline, KvError, KvResult, lock};

/// The paths that are being opened.
static TURNS: LazyLock<Mutex<HashMap<PathBuf, Arc<Semaphore>>>> = LazyLock::new(Mutex::default);

/// Maximum time after the deadline for finding the process in the way.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Returns the semaphore whose only permit belongs to the thread that opens a path.
fn turn(path: &Path) -> Arc<Semaphore> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut turns = lock(&TURNS);
    turns.retain(|_, turn| Arc::strong_count(turn) > 1);
    Arc::clone(turns.entry(path).or_insert_with(|| Arc::new(Semaphore::new(1))))
}

impl Engine {
    /// Opens the database on a thread of its own.
    ///
    /// # Errors
    /// Returns the error of opening it. Returns [`KvError::Timeout`], or
    /// [`KvError::Unavailable`] with the process in the way, if that takes too long: a database
    /// that is opened later is closed again.
    pub(super) async fn open(options: Options, call: Call<'_>) -> KvResult<Self> {
        let path = options.folder.clone();
        let until = call.deadline.instant();
        let Some(Ok(turn)) = timeout_at(until, turn(&path).acquire_owned()).await else {
            return Err(late(path, call).await);
        };
        let (answer, opened) = oneshot::channel();
        let spawned = thread::Builder::new().name("shizuku-kv-file".to_owned()).spawn(move || {
            let opened = Folder::open(options, until.into_std());
            let opened = opened.map(|(folder, database)| Shared::new(folder, database));
            drop(turn);
            match opened {
                Ok(shared) => {
                    let shared = Arc::new(shared);
                    let started = shared.start();
                    let engine = Self::of(Arc::clone(&shared));
                    // If the caller has given up, dropping the answer closes the database.
                    let _ = answer.send(started.map(|()| engine));
                    shared.run_writer();
                }
                Err(error) => drop(answer.send(Err(error))),
            }
        });
        if let Err(error) = spawned {
            return Err(no_thread(call.operation, error));
        }
        match timeout_at(until, opened).await {
            Some(Ok(opened)) => opened.map_err(|error| error.of_operation(call.operation)),
            Some(Err(_)) => Err(KvError::closed(call.operation)),
            None => Err(late(path, call).await),
        }
    }
}

/// Returns the error of a call that could not open a path in time.
async fn late(path: PathBuf, call: Call<'_>) -> KvError {
    let look = tokio::task::spawn_blocking(move || {
        let reason = owner::in_the_way(&path.canonicalize().ok()?)?;
        Some(format!("{} {reason}", path.display()))
    });
    match timeout_at(Deadline::after(LOOK_AROUND).instant(), look).await {
        Some(Ok(Some(reason))) => call.blocked(&reason),
        _ => call.timeout(),
    }
}
