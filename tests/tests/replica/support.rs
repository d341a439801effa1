//! Shared parts of the replica tests: an `apply` that waits for the test's answer, and words for
//! its updates.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{
    Batch, Replica, ReplicaError, ReplicaMonitor, ReplicaStorage, RetryPolicy,
};
use shizuku_kv::{Connection, KvOperation, KvUpdate, Store, WatchCursor, WatchScope, connect};
use shizuku_kv_tests::PATIENCE;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::disk::Disk;

/// Error of a test's `apply`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) &'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refused {}

/// A call of `apply`, which waits for its answer.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) batch: Batch,
    answer: oneshot::Sender<Result<(), Refused>>,
}

impl Ask {
    pub(crate) fn told(&self) -> Vec<String> {
        told(&self.batch)
    }

    /// Answers that it has succeeded.
    pub(crate) fn done(self) -> Batch {
        // The caller may be gone.
        let _ = self.answer.send(Ok(()));
        self.batch
    }

    pub(crate) fn fail(self, why: &'static str) -> Batch {
        let _ = self.answer.send(Err(Refused(why)));
        self.batch
    }
}

/// Turns calls of `apply` into requests to the test.
#[derive(Clone, Debug)]
pub(crate) struct Asker(mpsc::UnboundedSender<Ask>);

#[derive(Debug)]
pub(crate) struct Asks(mpsc::UnboundedReceiver<Ask>);

pub(crate) fn asking() -> (Asker, Asks) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Asker(sender), Asks(receiver))
}

impl Asker {
    pub(crate) fn apply(
        &self,
    ) -> impl FnMut(Batch) -> BoxFuture<'static, Result<(), Refused>> + Send + use<> {
        let asks = self.0.clone();
        move |batch| {
            let (answer, answered) = oneshot::channel();
            let _ = asks.send(Ask { batch, answer });
            Box::pin(async move { answered.await.unwrap_or(Err(Refused("nobody answers"))) })
        }
    }
}

impl Asks {
    /// Returns the next call.
    #[track_caller]
    pub(crate) fn next(&mut self) -> impl Future<Output = Ask> + use<'_> {
        let checkpoint = std::panic::Location::caller();
        async move {
            let ask = real(self.0.recv())
                .await
                .unwrap_or_else(|| panic!("{checkpoint}: apply is not called"));
            ask.unwrap_or_else(|| panic!("{checkpoint}: the run has ended"))
        }
    }

    /// Answers the next call with success, and returns its updates.
    #[track_caller]
    pub(crate) fn done(&mut self) -> impl Future<Output = Vec<String>> + use<'_> {
        let next = self.next();
        async move { told(&next.await.done()) }
    }

    /// Returns the next call. Returns `None` if no caller is left.
    pub(crate) async fn wait(&mut self) -> Option<Ask> {
        self.0.recv().await
    }

    /// Returns a call that has already come.
    pub(crate) fn ready(&mut self) -> Option<Ask> {
        self.0.try_recv().ok()
    }

    /// Answers all calls with success, up to a batch that ends with this word, and returns their
    /// updates.
    #[track_caller]
    pub(crate) fn up_to<'a>(
        &'a mut self,
        last: &'a str,
    ) -> impl Future<Output = Vec<String>> + use<'a> {
        let checkpoint = std::panic::Location::caller();
        async move {
            let mut all = Vec::new();
            while !all.iter().any(|word| word == last) {
                let ask = real(self.0.recv()).await;
                let ask = ask
                    .unwrap_or_else(|| panic!("{checkpoint}: {last} does not come, only {all:?}"));
                let ask = ask.unwrap_or_else(|| panic!("{checkpoint}: it has ended after {all:?}"));
                all.extend(told(&ask.done()));
            }
            all
        }
    }
}

/// Bounds a wait by the real clock, even while tokio's stands still.
pub(crate) async fn real<T>(future: impl Future<Output = T>) -> Option<T> {
    let (late, is_late) = oneshot::channel::<()>();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if is_done.recv_timeout(PATIENCE).is_err() {
            let _ = late.send(());
        }
    });
    let result = tokio::select! {
        biased;
        result = future => Some(result),
        Ok(()) = is_late => None,
    };
    let _ = done.send(());
    result
}

/// Describes an update in a word: `key=value`, `-key` for a deleted key, `~key` for a vanished one,
/// `.` for the marker.
pub(crate) fn word(update: &KvUpdate) -> String {
    match update {
        KvUpdate::Put(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
        KvUpdate::Delete(entry) if entry.operation == KvOperation::Vanished => {
            format!("~{}", entry.key)
        }
        KvUpdate::Delete(entry) => format!("-{}", entry.key),
        _ => ".".to_owned(),
    }
}

pub(crate) fn told(batch: &Batch) -> Vec<String> {
    batch.updates().iter().map(word).collect()
}

/// Returns the words in alphabetical order.
pub(crate) fn sorted(mut told: Vec<String>) -> Vec<String> {
    told.sort();
    told
}

/// Returns the state after applying all of this in order.
pub(crate) fn state(words: &[String]) -> Vec<String> {
    let mut state = BTreeMap::new();
    for word in words {
        match (word.split_once('='), word.strip_prefix(['-', '~'])) {
            (Some((key, _)), _) => drop(state.insert(key, word)),
            (None, Some(key)) => drop(state.remove(key)),
            (None, None) => {}
        }
    }
    state.into_values().cloned().collect()
}

/// Returns a policy with short pauses.
pub(crate) fn briskly(retry: RetryPolicy) -> RetryPolicy {
    retry.pauses(Duration::from_millis(1), Duration::from_millis(1))
}

pub(crate) type Outcome = Result<Option<WatchCursor>, ReplicaError>;

/// A replica that runs in a task of its own.
#[derive(Debug)]
pub(crate) struct Follower<S> {
    pub(crate) asks: Asks,
    pub(crate) stop: CancellationToken,
    pub(crate) monitor: ReplicaMonitor,
    task: JoinHandle<(Replica<S>, Outcome)>,
}

impl<S: ReplicaStorage> Follower<S> {
    pub(crate) fn start(replica: Replica<S>) -> Self {
        let stop = CancellationToken::new();
        let mut replica = replica.stop_on(stop.clone());
        let monitor = replica.monitor();
        let (asker, asks) = asking();
        let task = tokio::spawn(async move {
            let outcome = replica.run(asker.apply()).await;
            (replica, outcome)
        });
        Self { asks, stop, monitor, task }
    }

    /// Waits until the replica reports that it is caught up and nothing fails.
    #[track_caller]
    pub(crate) fn current(&self) -> impl Future<Output = ()> + use<S> {
        let checkpoint = std::panic::Location::caller();
        let mut monitor = self.monitor.clone();
        async move {
            let current = real(monitor.current()).await;
            assert_eq!(current, Some(true), "{checkpoint}: {:?}", monitor.progress());
        }
    }

    /// Waits for its end, and returns the outcome.
    #[track_caller]
    pub(crate) fn end(self) -> impl Future<Output = (Replica<S>, Outcome)> {
        let checkpoint = std::panic::Location::caller();
        async move {
            let ended = real(self.task).await.unwrap_or_else(|| panic!("{checkpoint}: it goes on"));
            ended.unwrap()
        }
    }

    /// Waits for its end, and returns the error.
    #[track_caller]
    pub(crate) fn error(self) -> impl Future<Output = ReplicaError> {
        let end = self.end();
        async move { end.await.1.unwrap_err() }
    }

    /// Drops the run at any point, and the replica with it.
    pub(crate) async fn crash(self) {
        self.task.abort();
        assert!(real(self.task).await.expect("it goes").is_err());
    }

    /// Stops it. Pending updates are applied.
    #[track_caller]
    pub(crate) fn stop(
        self,
    ) -> impl Future<Output = (Replica<S>, Option<WatchCursor>, Vec<String>)> {
        let Self { mut asks, stop, task, .. } = self;
        let checkpoint = std::panic::Location::caller();
        async move {
            stop.cancel();
            let mut last = Vec::new();
            let ended = async {
                let mut task = task;
                loop {
                    tokio::select! {
                        biased;
                        Some(ask) = asks.0.recv() => last.extend(told(&ask.done())),
                        ended = &mut task => return ended.unwrap(),
                    }
                }
            };
            let (replica, outcome) =
                real(ended).await.unwrap_or_else(|| panic!("{checkpoint}: it goes on"));
            (replica, outcome.unwrap(), last)
        }
    }
}

/// Starts a replica of all keys, which keeps its entries on a disk.
pub(crate) fn follow(store: &Store, disk: &Disk) -> Follower<Disk> {
    Follower::start(Replica::new(store, WatchScope::All).storage(disk.clone()))
}

/// Runs a replica until another future is ready, and drops the run.
pub(crate) async fn run_until<S: ReplicaStorage, T>(
    replica: &mut Replica<S>,
    asker: &Asker,
    happened: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        ended = replica.run(asker.apply()) => panic!("it has ended: {ended:?}"),
        happened = happened => happened,
    }
}

/// Returns every backend, with a connection of its own.
pub(crate) async fn stores() -> Vec<(Arc<dyn Connection>, Store)> {
    shizuku_kv_tests::stores("replica").await
}

/// Returns a store in memory. It lives as long as its connection.
pub(crate) async fn memory() -> (Arc<dyn Connection>, Store) {
    let connection = connect("memory:").await.unwrap();
    let store = connection.store("replica").await.unwrap();
    (connection, store)
}

/// Writes `key=value` for each of these, and deletes for `-key`.
pub(crate) async fn write(store: &Store, words: &[&str]) {
    for word in words {
        match (word.split_once('='), word.strip_prefix('-')) {
            (Some((key, value)), _) => drop(store.put(key, value.to_owned()).await.unwrap()),
            (None, Some(key)) => drop(store.delete(key).await.unwrap()),
            (None, None) => panic!("{word} says nothing"),
        }
    }
}

/// Lets all other tasks make progress. A paused clock does not advance while a task is ready or a
/// storage works on a blocking thread, so that both are idle afterwards.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
