//! Stopping: collected updates are applied and committed, and nothing hangs.

use std::time::Duration;

use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{Replica, RetryPolicy, StorageError};
use shizuku_kv::{BatchConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually};

use crate::disk::Disk;
use crate::script::{Script, away, cursor};
use crate::support::{Follower, asking, follow, settle, stores, write};

fn an_hour() -> BatchConfig {
    BatchConfig::new().window(Duration::from_secs(3600))
}

#[tokio::test]
async fn stop_applies_batch_in_its_window_at_once() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = script.replica(&disk).batch(an_hour());
    let follower = Follower::start(replica);
    let feed = script.accept().await;
    feed.all(1, &["a=1", "b=1"]);
    eventually("it has come", async || feed.pulled() == 2).await;
    let (_, end, last) = follower.stop().await;
    assert_eq!((end, last), (Some(cursor(2)), vec!["a=1".to_owned(), "b=1".to_owned()]));
    assert_eq!(disk.cursor(), end);
    feed.left().await;
}

#[tokio::test]
async fn stop_applies_updates_that_came_during_apply() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = script.replica(&disk);
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
    assert_eq!(disk.cursor(), Some(cursor(3)));
}

#[tokio::test(start_paused = true)]
async fn failing_apply_is_not_retried_after_a_stop() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = script.replica(&disk);
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
    assert_eq!(disk.cursor(), end);
    assert!(monitor.progress().last_error.is_some() && !monitor.progress().running);

    // It comes again with the next run.
    let mut follower = Follower::start(replica);
    let opening = script.opening().await;
    assert_eq!(opening.from, end);
    opening.accept().all(2, &["b=1", "."]);
    assert_eq!(follower.asks.done().await, ["b=1"]);
}

#[tokio::test]
async fn failed_first_attempt_after_a_stop_ends_the_run() {
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
async fn failing_storage_is_not_retried_after_a_stop() {
    for method in ["checkpoint", "is_empty", "held", "for_each_key", "commit"] {
        let mut script = Script::new();
        let disk = Disk::new();
        let mut follower = script.follow(&disk);
        script.accept().await.all(1, &["a=1", "."]);
        follower.asks.up_to(".").await;
        follower.stop().await;
        disk.lose_checkpoint();
        disk.fail(method, usize::MAX, StorageError::retryable);
        let replica = script.replica(&disk);
        let hours =
            RetryPolicy::forever().pauses(Duration::from_secs(3600), Duration::from_secs(3600));
        let mut follower = Follower::start(replica.retry(hours));
        if !["checkpoint", "is_empty"].contains(&method) {
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
async fn stopped_replica_returns_the_committed_cursor() {
    for (_connection, store) in stores().await {
        write(&store, &["a=1"]).await;
        let disk = Disk::new();
        let stopped = CancellationToken::new();
        stopped.cancel();
        let run = async || {
            let replica = Replica::new(&store, WatchScope::All).storage(disk.clone());
            let (asker, mut asks) = asking();
            let end = replica.stop_on(stopped.clone()).run(asker.apply()).await.unwrap();
            assert!(asks.ready().is_none());
            end
        };
        assert_eq!(run().await, None);
        let mut follower = follow(&store, &disk);
        follower.asks.up_to(".").await;
        let (_, end, _) = follower.stop().await;
        assert!(end.is_some());
        assert_eq!(run().await, end);
    }
}

#[tokio::test]
async fn stop_ends_an_opening_and_its_pause() {
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
async fn stop_ends_the_run_during_an_outage() {
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
