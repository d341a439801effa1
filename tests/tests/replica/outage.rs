//! Outages are waited out, and final errors end a run.

use std::time::{Duration, SystemTime};

use shizuku_kv::replica::{Replica, ReplicaError};
use shizuku_kv::{Deadline, KvError, Watch, WatchLink, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually, unique, urls};
use tokio::time::Instant;

use crate::disk::Disk;
use crate::script::{Script, away, cursor};
use crate::support::{Ask, Follower, follow, stores, write};

#[tokio::test]
async fn deleted_store_ends_the_run() {
    for url in urls() {
        let connection = connect(&url).await.unwrap();
        let name = unique("deleted");
        let store = connection.store(&name).await.unwrap();
        write(&store, &["a=1"]).await;
        let disk = Disk::new();
        let mut follower = follow(&store, &disk);
        follower.asks.up_to(".").await;
        connection.delete_store(&name).await.unwrap();
        let monitor = follower.monitor.clone();
        let (mut replica, outcome) = follower.end().await;
        let error = outcome.unwrap_err();
        assert!(matches!(error, ReplicaError::Store(KvError::StoreNotFound { .. })), "{error:?}");
        let progress = monitor.progress();
        assert!(!progress.running && !progress.is_current());
        assert!(matches!(
            progress.last_error.as_deref(),
            Some(ReplicaError::Store(KvError::StoreNotFound { .. }))
        ));
        // The applied updates are committed, and the monitor reports that.
        assert_eq!(disk.words(), ["a=1"]);
        assert_eq!(progress.applied, disk.cursor());
        // A new run has nothing to start with either.
        let apply = async |_| -> Result<(), crate::support::Refused> { panic!("nothing comes") };
        let error = replica.run(apply).await.unwrap_err();
        assert!(matches!(error, ReplicaError::Store(KvError::StoreNotFound { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn shut_down_connection_ends_the_run() {
    for (connection, store) in stores().await {
        write(&store, &["a=1"]).await;
        let mut follower = Follower::start(Replica::new(&store, WatchScope::All));
        follower.asks.up_to(".").await;
        connection.shutdown().await.unwrap();
        let error = follower.error().await;
        assert!(matches!(error, ReplicaError::Store(KvError::Closed { .. })), "{error:?}");
    }
}

/// Collected updates are applied and committed first.
#[tokio::test]
async fn updates_before_end_of_watch_are_applied() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower = script.follow(&disk);
    let feed = script.accept().await;
    feed.all(1, &["a=1"]).end(KvError::store_not_found("script"));
    let ask = follower.asks.next().await;
    assert!(follower.monitor.progress().running);
    assert_eq!(ask.told(), ["a=1"]);
    ask.done();
    let error = follower.error().await;
    assert!(matches!(error, ReplicaError::Store(KvError::StoreNotFound { .. })), "{error:?}");
    assert_eq!(disk.cursor(), Some(cursor(1)));
}

#[tokio::test(start_paused = true)]
async fn permanent_error_ends_run_and_transient_one_does_not() {
    let refused = KvError::unauthorized("watch", "no permission to subscribe");
    let unsupported = KvError::unsupported("watch", "not here");
    for error in [refused, unsupported] {
        let mut script = Script::new();
        let follower = Follower::start(Replica::new(&script.store, WatchScope::All));
        script.opening().await.refuse(away());
        script
            .opening()
            .await
            .refuse(Deadline::after(Duration::from_secs(5)).timeout("watch", None));
        script.opening().await.refuse(error.clone());
        let ReplicaError::Store(found) = follower.error().await else { panic!("another error") };
        assert_eq!(found.to_string(), error.to_string());
    }
}

/// A watch reports why it ends. One without an error has nothing more to deliver.
#[tokio::test]
async fn watch_that_ends_without_an_error_is_closed() {
    let mut script = Script::new();
    let follower = Follower::start(Replica::new(&script.store, WatchScope::All));
    script.opening().await.with(Watch::new(futures_util::stream::empty()));
    let error = follower.error().await;
    assert!(
        matches!(error, ReplicaError::Store(KvError::Closed { operation: "watch", .. })),
        "{error:?}"
    );
}

/// A watch that delivers nothing does not reset the pauses.
#[tokio::test(start_paused = true)]
async fn pauses_grow_until_a_watch_delivers() {
    let mut script = Script::new();
    let mut follower = Follower::start(Replica::new(&script.store, WatchScope::All));
    let feed = script.accept().await;
    feed.all(1, &["a=1", "."]);
    follower.asks.up_to(".").await;
    feed.end(away());
    let start = Instant::now();
    for _ in 0..8 {
        script.accept().await.end(away());
    }
    // 50 ms, doubled seven times and added up; at most twice that with jitter.
    let waited = start.elapsed();
    assert!(
        (Duration::from_millis(12_750)..Duration::from_millis(25_600)).contains(&waited),
        "{waited:?}"
    );
    let feed = script.accept().await;
    feed.say(3, "b=1");
    follower.asks.up_to("b=1").await;
    feed.end(away());
    let start = Instant::now();
    script.accept().await.say(4, ".");
    follower.asks.up_to(".").await;
    assert!(start.elapsed() <= Duration::from_millis(200), "{:?}", start.elapsed());
    follower.stop().await;
}

/// The link of a watch is reported as it changes, and while no watch can be opened.
#[tokio::test]
async fn monitor_reports_the_link_of_the_store() {
    let mut script = Script::new();
    let mut follower = Follower::start(Replica::new(&script.store, WatchScope::All));
    let opening = script.opening().await;
    let reason = |link: &WatchLink| match link {
        WatchLink::Down { reason, .. } => reason.to_string(),
        _ => String::new(),
    };
    let before = follower.monitor.progress().link;
    assert_eq!(reason(&before), "the store has not answered yet");
    opening.refuse(away());
    let opening = script.opening().await;
    let link = follower.monitor.progress().link;
    assert!(reason(&link).contains("the server is away"), "{link:?}");
    let since = |link: &WatchLink| match link {
        WatchLink::Down { since, .. } => Some(*since),
        _ => None,
    };
    assert_eq!(since(&link), since(&before), "it has not been heard from since");
    let feed = opening.accept();
    feed.all(1, &["a=1", "."]);
    follower.asks.up_to(".").await;
    follower.current().await;
    for _ in 0..3 {
        let down = WatchLink::down(SystemTime::now(), "a cable");
        feed.link(down.clone());
        eventually("it is down", async || follower.monitor.progress().link == down).await;
        assert!(!follower.monitor.progress().is_current());
        feed.link(WatchLink::Up);
        follower.current().await;
    }
    // Also while `apply` works.
    feed.say(3, "b=1");
    let ask = follower.asks.next().await;
    feed.link(WatchLink::down(SystemTime::now(), "a cable"));
    eventually("it is down", async || !follower.monitor.progress().link.is_up()).await;
    ask.done();
    feed.end(away());
    let opening = script.opening().await;
    assert!(!follower.monitor.progress().link.is_up());
    assert_eq!(opening.from, Some(cursor(3)));
    // A watch without a link is always up.
    opening.accept().all(4, &["."]);
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
}

/// Nothing can be applied meanwhile, so the loss would not be reported before the batch is done.
#[tokio::test]
async fn link_is_down_while_apply_or_commit_is_stuck() {
    for stuck in ["apply", "commit"] {
        let mut script = Script::new();
        let disk = Disk::new();
        let open = disk.gate("commit");
        let mut follower = script.follow(&disk);
        let opening = script.opening().await;
        assert_eq!((opening.from, &opening.scope), (None, &WatchScope::All));
        let feed = opening.accept();
        feed.all(1, &["a=1", "b=1"]);
        let mut ask = Some(follower.asks.next().await);
        assert!(follower.monitor.progress().link.is_up(), "{stuck}");
        if stuck == "commit" {
            drop(ask.take().map(Ask::done));
            eventually("it is being kept", async || disk.calls("commit") == 1).await;
        }
        feed.end(away());
        let down = async || !follower.monitor.progress().link.is_up();
        eventually(&format!("the link is down while {stuck} is stuck"), down).await;
        assert_eq!(disk.kept(), None, "{stuck}");
        drop(ask.map(Ask::done));
        drop(open);
        // The watch is opened again at the committed cursor.
        let opening = script.opening().await;
        assert_eq!(opening.from, Some(cursor(2)), "{stuck}");
        opening.accept().all(3, &["c=1", "."]);
        assert_eq!(follower.asks.done().await, ["c=1", "."], "{stuck}");
        follower.stop().await;
    }
}

#[tokio::test]
async fn killed_server_is_awaited_and_no_update_is_lost() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("b").await.unwrap();
    let disk = Disk::new();
    let mut follower = follow(&store, &disk);
    follower.asks.up_to(".").await;
    let mut expected = Vec::new();
    let mut all = Vec::new();
    for round in 0..3 {
        let word = format!("a.{round}=1");
        write(&store, &[&word]).await;
        all.extend(follower.asks.up_to(&word).await);
        server.kill();
        let down = async || !follower.monitor.progress().link.is_up();
        eventually("it is told", down).await;
        assert!(!follower.monitor.progress().is_current() && follower.monitor.progress().running);
        server.restart();
        follower.current().await;
        let direct = connect(&server.url()).await.unwrap().store("b").await.unwrap();
        let other = format!("b.{round}=1");
        write(&direct, &[&other]).await;
        all.extend(follower.asks.up_to(&other).await);
        expected.extend([word, other]);
    }
    assert_eq!(all, expected);
    assert_eq!(follower.monitor.progress().resyncs, 0);
    let (_, end, _) = follower.stop().await;
    assert_eq!(disk.cursor(), end);
    assert_eq!(disk.words().len(), 6);
}
