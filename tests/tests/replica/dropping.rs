//! Dropping the future of a run at any point: uncommitted updates come again, and nothing is
//! missed.

use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use shizuku_kv::replica::{Batch, Replica};
use shizuku_kv::{BatchConfig, WatchScope};
use shizuku_kv_tests::eventually;

use crate::disk::Disk;
use crate::script::{Script, cursor};
use crate::support::{Follower, Refused, asking, memory, run_until, settle, state, told, write};

/// A commit that has begun is finished in the background, and the next run begins after it.
#[tokio::test]
async fn run_after_a_dropped_one_waits_for_its_commit() {
    let mut script = Script::new();
    let disk = Disk::new();
    let open = disk.gate("commit");
    let mut replica = script.replica(&disk);
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
    assert_eq!(disk.calls("checkpoint"), 1, "the commit is not through yet");
    drop(open);
    let opening = script.opening().await;
    assert_eq!(opening.from, Some(cursor(1)));
    opening.accept().all(2, &["b=1", "."]);
    assert_eq!(follower.asks.up_to(".").await, ["b=1", "."]);
    follower.stop().await;
}

/// The storage is dropped, and so closed, only after the commit. Then another one can be opened.
#[tokio::test]
async fn storage_is_closed_after_its_last_commit() {
    let mut script = Script::new();
    let disk = Disk::new();
    let open = disk.gate("commit");
    let mut replica = script.replica(&disk);
    let (asker, mut asks) = asking();
    let keeping = async {
        script.accept().await.all(1, &["a=1", "."]);
        asks.done().await;
        eventually("it is being kept", async || disk.calls("commit") == 1).await;
    };
    run_until(&mut replica, &asker, keeping).await;
    drop(replica);
    assert_eq!(disk.handles(), 2);
    drop(open);
    eventually("it is closed", async || disk.handles() == 1).await;
    assert_eq!(disk.cursor(), Some(cursor(2)));
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
async fn run_dropped_after_any_step_misses_nothing() {
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
        let progress = replica.monitor().progress();
        assert!(!progress.running && progress.unapplied_since.is_none(), "{progress:?}");
        assert_eq!(progress.unapplied, 0);
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
