//! The reported progress of a replica.

use std::time::{Duration, SystemTime};

use shizuku_kv::replica::{Replica, ReplicaProgress};
use shizuku_kv::{BatchConfig, WatchScope};
use shizuku_kv_tests::eventually;

use crate::script::{Script, cursor};
use crate::support::{Follower, real};

#[tokio::test]
async fn current_waits_until_the_state_is_applied() {
    let mut script = Script::new();
    let replica = Replica::new(&script.store, WatchScope::All);
    let mut monitor = replica.monitor();
    let idle = monitor.progress();
    assert!(!idle.running && !idle.is_current() && idle.applied.is_none());
    let mut follower = Follower::start(replica);
    let current = tokio::spawn(async move { (monitor.current().await, monitor) });
    script.accept().await.all(1, &["a=1", "b=1", "."]);
    let ask = follower.asks.next().await;
    assert!(!current.is_finished() && follower.monitor.progress().running);
    ask.done();
    let (is_current, mut monitor) = real(current).await.unwrap().unwrap();
    assert!(is_current);
    let progress = monitor.progress();
    assert_eq!((progress.applied, progress.updates, progress.resyncs), (Some(cursor(3)), 2, 0));
    assert!(progress.caught_up && progress.running && progress.link.is_up());

    // Not current while it is stopped, and not when the run begins again.
    let (replica, _, _) = follower.stop().await;
    assert!(!monitor.progress().is_current());
    let mut follower = Follower::start(replica);
    let opening = script.opening().await;
    let progress = monitor.progress();
    assert!(progress.running && !progress.caught_up && !progress.is_current());
    assert_eq!((progress.updates, progress.applied), (2, Some(cursor(3))));
    opening.accept().all(4, &["c=1", "."]);
    follower.asks.up_to(".").await;
    assert!(monitor.current().await);
    assert_eq!(monitor.progress().updates, 3);
    let (replica, _, _) = follower.stop().await;

    // Returns `false` after the replica is gone.
    let gone = tokio::spawn(async move { monitor.current().await });
    drop(replica);
    assert!(!real(gone).await.unwrap().unwrap());
}

#[tokio::test]
async fn changed_tells_what_this_handle_has_not_seen() {
    let mut script = Script::new();
    let mut follower = Follower::start(Replica::new(&script.store, WatchScope::All));
    let mut monitor = follower.monitor.clone();
    let feed = script.accept().await;
    feed.all(1, &["a=1", "."]);
    follower.asks.up_to(".").await;
    follower.current().await;
    let change = async |monitor: &mut shizuku_kv::replica::ReplicaMonitor| {
        real(monitor.changed()).await.expect("a change")
    };
    // The earlier changes count as one, and then there is none.
    while !change(&mut monitor).await.unwrap().is_current() {}
    assert!(futures_util::FutureExt::now_or_never(monitor.changed()).is_none());
    feed.say(3, "b=1");
    let ask = follower.asks.next().await;
    let applying: ReplicaProgress = change(&mut monitor).await.unwrap();
    assert_eq!(applying.unapplied, 1);
    ask.done();
    while change(&mut monitor).await.unwrap().applied != Some(cursor(3)) {}
    drop(follower.stop().await);
    while let Some(progress) = change(&mut monitor).await {
        assert!(progress.applied == Some(cursor(3)));
    }
}

#[tokio::test]
async fn monitor_shows_number_and_age_of_waiting_updates() {
    let mut script = Script::new();
    let replica =
        Replica::new(&script.store, WatchScope::All).batch(BatchConfig::new().max_updates(3));
    let mut follower = Follower::start(replica);
    assert_eq!(follower.monitor.progress().lag(), Duration::ZERO);
    let before = SystemTime::now();
    script.accept().await.all(1, &["a=1", "b=1", "c=1", "."]);
    let ask = follower.asks.next().await;
    let progress = follower.monitor.progress();
    assert_eq!((progress.unapplied, progress.updates), (3, 0));
    let since = progress.unapplied_since.unwrap();
    assert!((before..=SystemTime::now()).contains(&since));
    eventually("it lags", async || follower.monitor.progress().lag() > Duration::from_millis(1))
        .await;
    ask.done();
    follower.asks.up_to(".").await;
    follower.current().await;
    let progress = follower.monitor.progress();
    assert_eq!((progress.unapplied, progress.unapplied_since, progress.updates), (0, None, 3));
    assert_eq!(progress.lag(), Duration::ZERO);
    follower.stop().await;

    let stamped = |since| {
        let mut progress = ReplicaProgress::default();
        progress.unapplied_since = since;
        progress.lag()
    };
    assert!(stamped(Some(SystemTime::now() - Duration::from_secs(60))) >= Duration::from_secs(60));
    // The clock was set back.
    assert_eq!(stamped(Some(SystemTime::now() + Duration::from_secs(60))), Duration::ZERO);
}
