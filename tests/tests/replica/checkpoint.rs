//! The committed checkpoint: never beyond the applied updates, and the start of another run.

use shizuku_kv::replica::{MemoryStorage, Replica};
use shizuku_kv::{BatchConfig, WatchScope};
use shizuku_kv_tests::eventually;

use crate::disk::Disk;
use crate::script::{Script, cursor};
use crate::support::{Follower, follow, settle, stores, write};

#[tokio::test]
async fn batch_is_committed_after_apply_has_returned() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower = script.follow(&disk);
    let feed = script.accept().await;
    feed.all(1, &["a=1", "."]);
    let ask = follower.asks.next().await;
    settle().await;
    assert_eq!(disk.calls("commit"), 0);
    let progress = follower.monitor.progress();
    assert_eq!((progress.applied, progress.updates, progress.caught_up), (None, 0, false));
    ask.done();
    eventually("it is kept", async || follower.monitor.progress().applied == Some(cursor(2))).await;
    assert_eq!(disk.cursor(), Some(cursor(2)));

    // The same applies to changes.
    feed.all(3, &["b=1"]);
    let ask = follower.asks.next().await;
    feed.all(4, &["c=1"]);
    settle().await;
    assert_eq!((disk.commits().len(), follower.monitor.progress().applied), (1, Some(cursor(2))));
    assert!(follower.asks.ready().is_none(), "one batch at a time");
    ask.done();
    assert_eq!(follower.asks.done().await, ["c=1"]);
    let (_, end, _) = follower.stop().await;
    assert_eq!(end, Some(cursor(4)));
    assert_eq!(
        disk.commits().iter().map(|commit| commit.words.clone()).collect::<Vec<_>>(),
        [vec!["a=1", "."], vec!["b=1"], vec!["c=1"]]
    );
}

/// Otherwise the checkpoint could be more than one commit behind.
#[tokio::test]
async fn batch_is_applied_after_the_previous_commit() {
    let mut script = Script::new();
    let disk = Disk::new();
    let open = disk.gate("commit");
    let replica = script.replica(&disk).batch(BatchConfig::new().max_updates(1));
    let mut follower = Follower::start(replica);
    script.accept().await.all(1, &["a=1", "b=1", "."]);
    assert_eq!(follower.asks.done().await, ["a=1"]);
    eventually("it is being kept", async || disk.calls("commit") == 1).await;
    settle().await;
    assert!(follower.asks.ready().is_none(), "the first batch is not kept yet");
    assert_eq!(follower.monitor.progress().unapplied, 1);
    open.send(()).unwrap();
    assert_eq!(follower.asks.done().await, ["b=1"]);
    drop(open);
    assert_eq!(follower.asks.done().await, ["."]);
    assert_eq!(follower.stop().await.1, Some(cursor(3)));
}

#[tokio::test]
async fn another_run_delivers_missed_updates() {
    for (_connection, store) in stores().await {
        write(&store, &["a=1", "b=1"]).await;
        let mut follower =
            Follower::start(Replica::new(&store, WatchScope::All).storage(MemoryStorage::new()));
        follower.asks.up_to(".").await;
        let (replica, first, _) = follower.stop().await;

        // Only the marker comes if nothing has happened.
        let mut follower = Follower::start(replica);
        assert_eq!(follower.asks.done().await, ["."]);
        let (replica, second, _) = follower.stop().await;
        assert_eq!(first.unwrap().position(), second.unwrap().position());

        write(&store, &["c=1", "b=2", "-a"]).await;
        let mut follower = Follower::start(replica);
        assert_eq!(follower.asks.up_to(".").await, ["c=1", "b=2", "-a", "."]);
        assert_eq!(follower.monitor.progress().resyncs, 0);
        let (_, end, _) = follower.stop().await;
        assert!(end.unwrap().position() > second.unwrap().position());
    }
}

#[tokio::test]
async fn new_replica_of_a_storage_delivers_missed_updates() {
    for (_connection, store) in stores().await {
        write(&store, &["a=1", "b=1"]).await;
        let disk = Disk::new();
        let mut follower = follow(&store, &disk);
        follower.asks.up_to(".").await;
        let (old, end, _) = follower.stop().await;
        drop(old);
        assert_eq!(disk.cursor(), end);
        write(&store, &["c=1", "-a"]).await;
        let mut follower = follow(&store, &disk);
        // The replica knows its progress from the start.
        let applied = async || follower.monitor.progress().applied == end;
        eventually("the checkpoint is reported", applied).await;
        assert_eq!(follower.asks.up_to(".").await, ["c=1", "-a", "."]);
        follower.stop().await;
        assert_eq!(disk.words(), ["b=1", "c=1"]);
    }
}

/// From a checkpoint within the initial state, the rest of it comes.
#[tokio::test]
async fn interrupted_initial_state_resumes_at_its_checkpoint() {
    for (_connection, store) in stores().await {
        write(&store, &["a=1", "b=1", "c=1", "d=1"]).await;
        let disk = Disk::new();
        let one = BatchConfig::new().max_updates(1);
        let replica = || Replica::new(&store, WatchScope::All).storage(disk.clone()).batch(one);
        let mut follower = Follower::start(replica());
        assert_eq!(follower.asks.done().await, ["a=1"]);
        assert_eq!(follower.asks.done().await, ["b=1"]);
        let third = follower.asks.next().await;
        assert_eq!(third.told(), ["c=1"]);
        // Simulates a crash before the third is applied.
        follower.crash().await;
        write(&store, &["a=2"]).await;
        let mut follower = Follower::start(replica());
        assert_eq!(follower.asks.up_to(".").await, ["c=1", "d=1", "a=2", "."]);
        assert_eq!(follower.monitor.progress().resyncs, 0);
        follower.stop().await;
    }
}
