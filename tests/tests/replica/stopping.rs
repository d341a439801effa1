//! Stopping: collected updates are applied and committed, and nothing hangs.

use std::time::Duration;

use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{Replica, RetryPolicy, StorageError};
use shizuku_kv::{BatchConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually};

use crate::disk::Disk;
use crate::script::{Script, away, cursor};
use crate::support::{Follower, asking, briskly, settle, stores, write};

fn an_hour() -> BatchConfig {
    BatchConfig::new().window(Duration::from_secs(3600))
}

#[tokio::test]
async fn stop_applies_and_commits_delivered_updates() {
    for (_connection, store) in stores().await {
        let disk = Disk::new();
        let replica = Replica::new(&store, WatchScope::All).storage(disk.clone()).batch(an_hour());
        let mut follower = Follower::start(replica);
        follower.asks.up_to(".").await;
        write(&store, &["a=1", "b=1"]).await;
        // The backend decides how many updates have come.
        let (_, end, last) = follower.stop().await;
        assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), end);
        assert_eq!(disk.words(), last);
    }
}

#[tokio::test]
async fn stop_applies_batch_in_its_window_at_once() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica =
        Replica::new(&script.store, WatchScope::All).storage(disk.clone()).batch(an_hour());
    let follower = Follower::start(replica);
    let feed = script.accept().await;
    feed.all(1, &["a=1", "b=1"]);
    eventually("it has come", async || feed.pulled() == 2).await;
    let (_, end, last) = follower.stop().await;
    assert_eq!((end, last), (Some(cursor(2)), vec!["a=1".to_owned(), "b=1".to_owned()]));
    assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), end);
    feed.left().await;
}

#[tokio::test]
async fn stop_applies_updates_that_came_during_apply() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = Replica::new(&script.store, WatchScope::All).storage(disk.clone());
    let mut follower = Follower::start(replica.batch(an_hour().max_updates(2)));
    let feed = script.accept().await;
    feed.all(1, &["a=1", "b=1", "c=1"]);
    let ask = follower.asks.next().await;
    eventually("it has come", async || feed.pulled() == 3).await;
    follower.stop.cancel();
    settle().await;
    assert!(follower.monitor.progress().running, "it waits for apply");
    ask.done();
    assert_eq!(follower.asks.done().await, ["c=1"]);
    assert_eq!(follower.end().await.1.unwrap(), Some(cursor(3)));
    assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), Some(cursor(3)));
}

#[tokio::test(start_paused = true)]
async fn apply_that_fails_is_given_up() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = Replica::new(&script.store, WatchScope::All).storage(disk.clone());
    let hours = RetryPolicy::forever().pauses(Duration::from_secs(3600), Duration::from_secs(3600));
    let mut follower =
        Follower::start(replica.retry(hours).batch(BatchConfig::new().max_updates(1)));
    script.accept().await.all(1, &["a=1", "b=1", "c=1"]);
    follower.asks.done().await;
    follower.asks.next().await.fail("no");
    let failed = async || follower.monitor.progress().last_error.is_some();
    eventually("it has failed", failed).await;
    let monitor = follower.monitor.clone();
    let before = tokio::time::Instant::now();
    let (replica, end, last) = follower.stop().await;
    assert_eq!((end, last), (Some(cursor(1)), vec![]));
    assert!(before.elapsed() < Duration::from_secs(3600));
    assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), end);
    assert!(monitor.progress().last_error.is_some() && !monitor.progress().running);

    // It comes again with the next run.
    let mut follower = Follower::start(replica);
    let opening = script.opening().await;
    assert_eq!(opening.from, end);
    opening.accept().all(2, &["b=1", "."]);
    assert_eq!(follower.asks.done().await, ["b=1"]);
}

#[tokio::test]
async fn it_stops_when_the_first_try_after_the_stop_fails() {
    let mut script = Script::new();
    let mut follower =
        Follower::start(Replica::new(&script.store, WatchScope::All).batch(an_hour()));
    let feed = script.accept().await;
    feed.all(1, &["a=1"]);
    eventually("it has come", async || feed.pulled() == 1).await;
    follower.stop.cancel();
    follower.asks.next().await.fail("no");
    assert_eq!(follower.end().await.1.unwrap(), None);
}

#[tokio::test]
async fn a_storage_that_fails_is_given_up() {
    for method in ["place", "is_empty", "held", "for_each_key", "commit"] {
        let mut script = Script::new();
        let disk = Disk::new();
        let mut follower =
            Follower::start(Replica::new(&script.store, WatchScope::All).storage(disk.clone()));
        script.accept().await.all(1, &["a=1", "."]);
        follower.asks.up_to(".").await;
        follower.stop().await;
        disk.lose_place();
        disk.fail(method, usize::MAX, StorageError::retryable);
        let replica = Replica::new(&script.store, WatchScope::All).storage(disk.clone());
        let hours =
            RetryPolicy::forever().pauses(Duration::from_secs(3600), Duration::from_secs(3600));
        let mut follower = Follower::start(replica.retry(hours));
        if !["place", "is_empty"].contains(&method) {
            script.accept().await.all(2, &["b=1", "."]);
        }
        if ["commit", "for_each_key"].contains(&method) {
            follower.asks.done().await;
        }
        let failed = async || follower.monitor.progress().last_error.is_some();
        eventually("it has failed", failed).await;
        let (_, end, last) = follower.stop().await;
        assert_eq!((end, last), (None, vec![]), "{method}");
    }
}

#[tokio::test]
async fn a_replica_that_was_stopped_before_does_nothing() {
    for (_connection, store) in stores().await {
        write(&store, &["a=1"]).await;
        let disk = Disk::new();
        let stopped = CancellationToken::new();
        stopped.cancel();
        for _ in 0..2 {
            let mut replica = Replica::new(&store, WatchScope::All)
                .storage(disk.clone())
                .stop_on(stopped.clone());
            let (asker, mut asks) = asking();
            // The cursor of the earlier run, if there was one.
            assert_eq!(
                replica.run(asker.apply()).await.unwrap(),
                disk.kept().map(|checkpoint| checkpoint.cursor())
            );
            assert!(asks.ready().is_none());
            if disk.kept().is_none() {
                let mut follower =
                    Follower::start(Replica::new(&store, WatchScope::All).storage(disk.clone()));
                follower.asks.up_to(".").await;
                follower.stop().await;
                assert!(disk.kept().is_some());
            }
        }
    }
}

#[tokio::test]
async fn it_stops_while_the_watch_is_being_opened_or_rests() {
    let mut script = Script::new();
    let follower = Follower::start(Replica::new(&script.store, WatchScope::All));
    let opening = script.opening().await;
    assert_eq!(follower.stop().await.1, None);
    drop(opening);

    let follower = Follower::start(Replica::new(&script.store, WatchScope::All));
    for _ in 0..3 {
        script.opening().await.refuse(away());
    }
    let down = async || !follower.monitor.progress().link.is_up();
    eventually("it is told", down).await;
    assert_eq!(follower.stop().await.1, None);
}

#[tokio::test]
async fn it_stops_while_nothing_happens() {
    for (_connection, store) in stores().await {
        let mut follower = Follower::start(Replica::new(&store, WatchScope::All));
        follower.asks.up_to(".").await;
        follower.current().await;
        let (replica, end, last) = follower.stop().await;
        assert!(end.is_some() && last.is_empty());
        drop(replica);
    }
}

#[tokio::test]
async fn it_stops_while_the_server_is_away() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("b").await.unwrap();
    write(&store, &["a=1"]).await;
    let mut follower = Follower::start(Replica::new(&store, WatchScope::All));
    follower.asks.up_to(".").await;
    follower.current().await;
    server.kill();
    let down = async || !follower.monitor.progress().link.is_up();
    eventually("it is told", down).await;
    let (replica, end, _) = follower.stop().await;
    assert!(end.is_some());
    // The same if it starts while the server is away.
    let follower = Follower::start(replica);
    eventually("it has begun", async || follower.monitor.progress().running).await;
    assert_eq!(follower.stop().await.1, end);
}

#[tokio::test]
async fn stopped_in_the_middle_of_a_repair_it_has_no_cursor() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower =
        Follower::start(Replica::new(&script.store, WatchScope::All).storage(disk.clone()));
    script.accept().await.all(1, &["a=1", "."]);
    follower.asks.up_to(".").await;
    let (replica, end, _) = follower.stop().await;
    assert_eq!(end, Some(cursor(2)));
    follower = Follower::start(replica.retry(briskly(RetryPolicy::forever())));
    script.opening().await.refuse(crate::script::expired());
    // The same before the state is available.
    let opening = script.opening().await;
    let (replica, end, _) = follower.stop().await;
    assert_eq!(end, None);
    drop(opening);

    follower = Follower::start(replica);
    script.opening().await.refuse(crate::script::expired());
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    let feed = opening.accept();
    // A known entry is not news, and is not committed again.
    feed.all(1, &["a=1"]);
    eventually("it has come", async || feed.pulled() == 1).await;
    assert_eq!(follower.monitor.progress().applied, None);
    assert!(follower.asks.ready().is_none());
    assert_eq!(follower.stop().await.1, None);
}
