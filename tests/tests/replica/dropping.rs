//! Dropping the future of a run at any point: uncommitted updates come again, and nothing is
//! missed.

use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use shizuku_kv::replica::{
    Batch, Checkpoint, Replica, ReplicaStorage, RetryPolicy, StorageError, StoredVersion,
};
use shizuku_kv::{BatchConfig, Key, KvUpdate, WatchScope};
use shizuku_kv_tests::eventually;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::disk::Disk;
use crate::script::{Script, away, cursor};
use crate::support::{
    Follower, Refused, asking, memory, real, run_until, settle, state, told, write,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Checks the updates of a later run, up to the marker.
async fn rest(script: &mut Script, replica: Replica<Disk>, from: Option<u64>, words: &[&str]) {
    let mut follower = Follower::start(replica);
    let opening = script.opening().await;
    assert_eq!(opening.from, from.map(cursor));
    opening.accept().all(from.unwrap_or(0) + 1, words);
    assert_eq!(follower.asks.up_to(".").await, words);
    follower.stop().await;
}

fn replica(script: &Script, disk: &Disk) -> Replica<Disk> {
    Replica::new(&script.store, WatchScope::All)
        .storage(disk.clone())
        .batch(BatchConfig::new().max_updates(1))
}

#[tokio::test]
async fn while_a_watch_is_opened() {
    let mut script = Script::new();
    let mut replica = replica(&script, &Disk::new());
    let (asker, _asks) = asking();
    let opening = run_until(&mut replica, &asker, script.opening()).await;
    assert!(!replica.monitor().progress().running);
    drop(opening);
    rest(&mut script, replica, None, &["a=1", "."]).await;
}

#[tokio::test]
async fn while_it_waits_for_another_try_to_open_one() {
    let mut script = Script::new();
    let mut replica = replica(&script, &Disk::new());
    let (asker, _asks) = asking();
    let monitor = replica.monitor();
    let refused = async {
        script.opening().await.refuse(away());
        let down = async || format!("{:?}", monitor.progress().link).contains("away");
        eventually("it is told", down).await;
    };
    run_until(&mut replica, &asker, refused).await;
    rest(&mut script, replica, None, &["a=1", "."]).await;
}

#[tokio::test]
async fn while_a_batch_is_collected() {
    let mut script = Script::new();
    let disk = Disk::new();
    let batch = BatchConfig::new().window(HOUR);
    let mut replica = replica(&script, &disk).batch(batch);
    let (asker, mut asks) = asking();
    let collected = async {
        let feed = script.accept().await;
        feed.all(1, &["a=1", "b=1"]);
        eventually("it has come", async || feed.pulled() == 2).await;
        feed
    };
    let feed = run_until(&mut replica, &asker, collected).await;
    feed.left().await;
    assert!(asks.ready().is_none());
    assert_eq!(disk.kept(), None);
    rest(&mut script, replica, None, &["a=1", "b=1", "."]).await;
}

#[tokio::test]
async fn while_apply_works() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut replica = replica(&script, &disk);
    let (asker, mut asks) = asking();
    let applying = async {
        let feed = script.accept().await;
        feed.all(1, &["a=1", "b=1", "c=1"]);
        asks.done().await;
        let ask = asks.next().await;
        eventually("the next has come", async || feed.pulled() == 3).await;
        ask
    };
    let ask = run_until(&mut replica, &asker, applying).await;
    assert_eq!(ask.told(), ["b=1"]);
    let progress = replica.monitor().progress();
    assert_eq!(
        (progress.running, progress.unapplied, progress.applied),
        (false, 0, Some(cursor(1)))
    );
    ask.done();
    settle().await;
    assert_eq!(disk.commits().len(), 1, "nobody was there to keep it");
    rest(&mut script, replica, Some(1), &["b=1", "c=1", "."]).await;
}

#[tokio::test]
async fn while_it_rests_before_another_try() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut replica = replica(&script, &disk).retry(RetryPolicy::forever().pauses(HOUR, HOUR));
    let monitor = replica.monitor();
    let (asker, mut asks) = asking();
    let resting = async {
        script.accept().await.all(1, &["a=1", "b=1"]);
        asks.done().await;
        asks.next().await.fail("no");
        eventually("it is told", async || monitor.progress().last_error.is_some()).await;
    };
    run_until(&mut replica, &asker, resting).await;
    rest(&mut script, replica, Some(1), &["b=1", "."]).await;
    assert!(monitor.progress().last_error.is_none());
}

/// A commit that has begun is finished in the background, and the next run begins after it.
#[tokio::test]
async fn while_a_commit_works() {
    let mut script = Script::new();
    let disk = Disk::new();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let mut waits = true;
    disk.hook(move |method| {
        if method == "commit" && std::mem::take(&mut waits) {
            gate.recv_timeout(Duration::from_secs(20)).expect("the test lets it go on");
        }
        Ok(())
    });
    let mut replica = replica(&script, &disk);
    let (asker, mut asks) = asking();
    let keeping = async {
        script.accept().await.all(1, &["a=1"]);
        asks.done().await;
        eventually("it is being kept", async || disk.calls("commit") == 1).await;
    };
    run_until(&mut replica, &asker, keeping).await;
    assert_eq!(disk.commits().len(), 0);
    let mut follower = Follower::start(replica);
    eventually("it runs", async || follower.monitor.progress().running).await;
    settle().await;
    assert_eq!(disk.calls("place"), 1, "the commit is not through yet");
    open.send(()).unwrap();
    let opening = script.opening().await;
    assert_eq!(opening.from, Some(cursor(1)));
    opening.accept().all(2, &["b=1", "."]);
    assert_eq!(follower.asks.up_to(".").await, ["b=1", "."]);
    follower.stop().await;
}

/// The storage is dropped, and so closed, only after the commit. Then another one can be opened.
#[tokio::test]
async fn a_storage_is_closed_after_its_last_commit() {
    let mut script = Script::new();
    let disk = Disk::new();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    disk.hook(move |method| {
        if method == "commit" {
            gate.recv_timeout(Duration::from_secs(20)).expect("the test lets it go on");
        }
        Ok(())
    });
    let closed = CancellationToken::new();
    let storage = Closing { disk: disk.clone(), _guard: closed.clone().drop_guard() };
    let mut replica = Replica::new(&script.store, WatchScope::All).storage(storage);
    let (asker, mut asks) = asking();
    let keeping = async {
        script.accept().await.all(1, &["a=1", "."]);
        asks.done().await;
        eventually("it is being kept", async || disk.calls("commit") == 1).await;
    };
    run_until(&mut replica, &asker, keeping).await;
    drop(replica);
    assert!(!closed.is_cancelled());
    open.send(()).unwrap();
    real(closed.cancelled()).await.expect("it is closed");
    assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), Some(cursor(2)));
}

/// A storage that reports its closing.
struct Closing {
    disk: Disk,
    _guard: DropGuard,
}

impl ReplicaStorage for Closing {
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        self.disk.checkpoint()
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        self.disk.is_empty()
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError> {
        self.disk.held(keys)
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError> {
        self.disk.for_each_key(visit)
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), StorageError> {
        self.disk.commit(changes, checkpoint)
    }
}

/// Notified when a future may continue.
struct NotifyWaker(tokio::sync::Notify);

impl Wake for NotifyWaker {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// Drops the run at every point at which its future waits.
#[tokio::test]
async fn after_any_number_of_steps() {
    let mut is_through = false;
    for steps in 0.. {
        if is_through {
            assert!(steps > 8, "it was through after {steps} steps");
            break;
        }
        let (_connection, store) = memory().await;
        write(&store, &["a=1", "b=1", "c=1", "d=0", "e=1", "f=1", "g=1", "h=1"]).await;
        let disk = Disk::new();
        let batch = BatchConfig::new().max_updates(1).window(Duration::ZERO);
        let mut replica = Replica::new(&store, WatchScope::All).storage(disk.clone()).batch(batch);
        let applied = Mutex::new(Vec::new());
        let apply = async |batch: Batch| {
            tokio::task::yield_now().await;
            applied.lock().unwrap().extend(told(&batch));
            Ok::<_, Refused>(())
        };
        let notify = Arc::new(NotifyWaker(tokio::sync::Notify::new()));
        {
            let mut run = Box::pin(replica.run(apply));
            let waker = Waker::from(Arc::clone(&notify));
            for _ in 0..steps {
                assert!(run.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                is_through =
                    disk.commits().iter().any(|commit| commit.words.contains(&".".to_owned()));
                if is_through {
                    break;
                }
                let woken = tokio::time::timeout(Duration::from_secs(20), notify.0.notified());
                woken.await.expect("it goes on");
            }
        }
        let mut all = std::mem::take(&mut *applied.lock().unwrap());
        write(&store, &["-a", "d=1"]).await;
        let mut follower = Follower::start(replica);
        all.extend(follower.asks.up_to(".").await);
        follower.stop().await;
        // Applied one after the other, both runs give the content of the store.
        let there = ["b=1", "c=1", "d=1", "e=1", "f=1", "g=1", "h=1"];
        assert_eq!(state(&all), there, "after {steps} steps: {all:?}");
        assert_eq!(disk.words(), state(&all));
    }
}

/// A dropped run leaves only the state of its replica.
#[tokio::test]
async fn a_dropped_run_calls_apply_no_more() {
    let mut script = Script::new();
    let mut replica = replica(&script, &Disk::new());
    let (asker, mut asks) = asking();
    let feed = run_until(&mut replica, &asker, async {
        let feed = script.accept().await;
        feed.all(1, &["a=1"]);
        asks.done().await;
        feed
    })
    .await;
    feed.left().await;
    feed.all(2, &["b=1"]);
    settle().await;
    assert!(asks.ready().is_none());
}
