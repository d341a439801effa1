//! The committed checkpoint: never beyond the applied updates, and the start of another run.

use std::time::Duration;

use shizuku_kv::replica::{MemoryStorage, Replica};
use shizuku_kv::{BatchConfig, WatchScope};
use shizuku_kv_tests::eventually;

use crate::disk::Disk;
use crate::script::{Script, cursor};
use crate::support::{Follower, briskly, settle, stores, told, write};

#[tokio::test]
async fn nothing_is_kept_before_apply_has_returned() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower =
        Follower::start(Replica::new(&script.store, WatchScope::All).storage(disk.clone()));
    let feed = script.accept().await;
    feed.all(1, &["a=1", "."]);
    let ask = follower.asks.next().await;
    settle().await;
    assert_eq!(disk.calls("commit"), 0);
    let progress = follower.monitor.progress();
    assert_eq!((progress.applied, progress.updates, progress.caught_up), (None, 0, false));
    ask.done();
    eventually("it is kept", async || follower.monitor.progress().applied == Some(cursor(2))).await;
    assert_eq!(disk.kept().unwrap().cursor(), cursor(2));

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

/// The next batch is not applied before the previous one is committed, because the checkpoint could
/// otherwise be more than one commit behind.
#[tokio::test]
async fn nothing_is_applied_before_what_was_applied_is_kept() {
    let mut script = Script::new();
    let disk = Disk::new();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    disk.hook(move |method| {
        if method == "commit" {
            gate.recv_timeout(Duration::from_secs(20)).expect("the test lets it go on");
        }
        Ok(())
    });
    let replica = Replica::new(&script.store, WatchScope::All).storage(disk.clone());
    let mut follower = Follower::start(replica.batch(BatchConfig::new().max_updates(1)));
    script.accept().await.all(1, &["a=1", "b=1", "."]);
    assert_eq!(follower.asks.done().await, ["a=1"]);
    eventually("it is being kept", async || disk.calls("commit") == 1).await;
    settle().await;
    assert!(follower.asks.ready().is_none(), "the first batch is not kept yet");
    assert_eq!(follower.monitor.progress().unapplied, 1);
    open.send(()).unwrap();
    assert_eq!(follower.asks.done().await, ["b=1"]);
    open.send(()).unwrap();
    assert_eq!(follower.asks.done().await, ["."]);
    open.send(()).unwrap();
    assert_eq!(follower.stop().await.1, Some(cursor(3)));
}

#[tokio::test]
async fn the_place_is_never_past_a_batch_that_failed() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = Replica::new(&script.store, WatchScope::All).storage(disk.clone());
    let replica =
        replica.batch(BatchConfig::new().max_updates(1)).retry(briskly(Default::default()));
    let mut follower = Follower::start(replica);
    script.accept().await.all(1, &["a=1", "b=1", "c=1", "."]);
    assert_eq!(follower.asks.done().await, ["a=1"]);
    for _ in 0..5 {
        let ask = follower.asks.next().await;
        assert_eq!(ask.told(), ["b=1"]);
        assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), Some(cursor(1)));
        ask.fail("no");
    }
    assert_eq!(follower.asks.up_to(".").await, ["b=1", "c=1", "."]);
    follower.stop().await;
    assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), Some(cursor(4)));
}

#[tokio::test]
async fn another_run_of_the_same_replica_gets_what_it_missed() {
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
        let progress = follower.monitor.progress();
        assert_eq!(progress.repairs, 0);
        let (_, end, _) = follower.stop().await;
        assert!(end.unwrap().position() > second.unwrap().position());
    }
}

#[tokio::test]
async fn a_new_replica_over_the_same_storage_gets_what_it_missed() {
    for (_connection, store) in stores().await {
        write(&store, &["a=1", "b=1"]).await;
        let disk = Disk::new();
        let replica = || Replica::new(&store, WatchScope::All).storage(disk.clone());
        let mut follower = Follower::start(replica());
        follower.asks.up_to(".").await;
        let (old, end, _) = follower.stop().await;
        drop(old);
        assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), end);
        write(&store, &["c=1", "-a"]).await;
        for told in [vec!["c=1", "-a", "."], vec!["."]] {
            let mut follower = Follower::start(replica());
            // It knows its progress from the start.
            let kept = disk.kept().map(|checkpoint| checkpoint.cursor());
            let applied = async || follower.monitor.progress().applied == kept;
            eventually("the place is told", applied).await;
            assert_eq!(follower.asks.up_to(".").await, told);
            follower.stop().await;
        }
        assert_eq!(disk.words(), ["b=1", "c=1"]);
    }
}

/// From a checkpoint within the initial state, the rest of it comes.
#[tokio::test]
async fn a_state_that_was_cut_short_goes_on_where_it_was() {
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
        assert_eq!(follower.monitor.progress().repairs, 0);
        follower.stop().await;
    }
}

/// The watch is opened with the committed cursor.
#[tokio::test]
async fn a_watch_that_broke_is_opened_again_where_the_replica_stands() {
    let mut script = Script::new();
    let mut follower = Follower::start(Replica::new(&script.store, WatchScope::All));
    let opening = script.opening().await;
    assert_eq!((opening.from, &opening.scope), (None, &WatchScope::All));
    let feed = opening.accept();
    feed.all(1, &["a=1", "b=1"]).end(crate::script::away());
    let ask = follower.asks.next().await;
    assert_eq!(told(&ask.batch), ["a=1", "b=1"]);
    settle().await;
    ask.done();
    let opening = script.opening().await;
    assert_eq!(opening.from, Some(cursor(2)));
    opening.accept().all(3, &["c=1", "."]);
    assert_eq!(follower.asks.done().await, ["c=1", "."]);
    follower.stop().await;
}
