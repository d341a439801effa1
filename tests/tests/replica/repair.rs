//! Resyncs: vanished keys are dropped, known entries do not come again, and no checkpoint is
//! committed before the end.

use shizuku_kv::replica::{MemoryStorage, Replica, RetryPolicy, StorageError};
use shizuku_kv::{BatchConfig, KvOperation, KvUpdate, VersionToken, WatchScope};
use shizuku_kv_tests::eventually;

use crate::disk::Disk;
use crate::script::{Feed, Script, away, cursor, expired};
use crate::support::{Follower, briskly, settle, sorted, told};

/// Returns a replica that holds the entries of `words`, up to a position.
async fn holding(script: &mut Script, disk: &Disk, words: &[&str]) -> Replica<Disk> {
    let mut follower =
        Follower::start(Replica::new(&script.store, WatchScope::All).storage(disk.clone()));
    script.accept().await.all(1, words).say(90, ".");
    follower.asks.up_to(".").await;
    let (replica, end, _) = follower.stop().await;
    assert_eq!(end, Some(cursor(90)));
    replica.retry(briskly(RetryPolicy::forever()))
}

/// Starts it, and rejects its cursor. Returns the watch of the resync.
async fn repairing(script: &mut Script, replica: Replica<Disk>) -> (Follower<Disk>, Feed) {
    let follower = Follower::start(replica);
    let opening = script.opening().await;
    assert_eq!(opening.from, Some(cursor(90)));
    opening.refuse(expired());
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    (follower, opening.accept())
}

#[tokio::test]
async fn vanished_keys_come_before_marker_and_later_updates() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = holding(&mut script, &disk, &["a=1", "b=1", "c=1", "d=1"]).await;
    let (mut follower, feed) = repairing(&mut script, replica).await;
    // `a` is unchanged, `b` has changed, `c` is gone and comes again later, `d` was deleted, `e` is
    // new.
    feed.say(1, "a=1").all(100, &["b=2", "-d", "e=1", ".", "c=2"]);
    let batch = follower.asks.next().await.done();
    assert_eq!(
        (told(&batch), batch.cursor()),
        (vec!["b=2".into(), "-d".into(), "e=1".into()], None)
    );
    let batch = follower.asks.next().await.done();
    assert_eq!((told(&batch), batch.cursor()), (vec!["~c".into()], None));
    let KvUpdate::Delete(gone) = &batch.updates()[0] else { panic!("{batch:?}") };
    // It has the version of the held entry, and the time of the state.
    assert_eq!(gone.operation, KvOperation::Vanished);
    assert_eq!((gone.version, gone.created), (VersionToken::from_u64(3), cursor(103).as_of()));
    assert!(gone.value.is_empty());
    let ask = follower.asks.next().await;
    assert!(ask.batch.is_caught_up());
    assert_eq!((ask.told(), ask.batch.cursor()), (vec![".".into()], Some(cursor(103))));
    let progress = follower.monitor.progress();
    assert_eq!((progress.repairs, progress.caught_up, progress.applied), (1, false, None));
    // No checkpoint is committed before the end.
    let commits = disk.commits();
    assert_eq!(disk.kept(), None);
    assert!(commits[1..].iter().all(|commit| commit.checkpoint.is_none()), "{commits:?}");
    ask.done();
    let batch = follower.asks.next().await.done();
    assert_eq!((told(&batch), batch.cursor()), (vec!["c=2".into()], Some(cursor(104))));
    follower.current().await;
    let (_, end, _) = follower.stop().await;
    assert_eq!(end, Some(cursor(104)));
    assert_eq!(disk.words(), ["a=1", "b=2", "c=2", "e=1"]);
}

#[tokio::test]
async fn resync_delivers_no_known_entry() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = holding(&mut script, &disk, &["a=1", "b=1"]).await;
    let before = replica.monitor().progress().updates;
    let (mut follower, feed) =
        repairing(&mut script, replica.batch(BatchConfig::new().max_updates(1))).await;
    feed.all(1, &["a=1", "b=1"]).say(95, ".");
    assert_eq!(follower.asks.done().await, ["."]);
    follower.current().await;
    assert_eq!(follower.monitor.progress().updates, before);
    assert_eq!(follower.stop().await.1, Some(cursor(95)));
    assert_eq!(disk.words(), ["a=1", "b=1"]);
}

/// A recreated store counts from the start: the same version at another time is another value.
#[tokio::test]
async fn the_same_version_of_another_time_is_news() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = holding(&mut script, &disk, &["a=1", "b=1"]).await;
    let (mut follower, feed) = repairing(&mut script, replica).await;
    let later = shizuku_kv::KvEntry::put(
        shizuku_kv::Key::new("a").unwrap(),
        "2".into(),
        VersionToken::from_u64(1),
        cursor(50).as_of(),
    );
    feed.raw(1, later.into()).say(95, ".");
    assert_eq!(follower.asks.up_to(".").await, ["a=2", "~b", "."]);
    follower.stop().await;
    assert_eq!(disk.words(), ["a=2"]);
}

/// A server that is behind may show an older value before the held one.
#[tokio::test]
async fn held_entry_is_delivered_again_after_older_one() {
    for max in [1, 100] {
        let mut script = Script::new();
        let disk = Disk::new();
        let replica = holding(&mut script, &disk, &["x=1", "a=2", "b=2"]).await;
        let (mut follower, feed) =
            repairing(&mut script, replica.batch(BatchConfig::new().max_updates(max))).await;
        feed.say(1, "a=1").say(2, "a=2").say(1, "-b").say(3, "b=2").say(95, ".");
        let told = follower.asks.up_to(".").await;
        assert_eq!(told, ["a=1", "a=2", "-b", "b=2", "~x", "."], "{max}");
        follower.stop().await;
        assert_eq!(disk.words(), ["a=2", "b=2"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_was_cut_short_begins_anew() {
    let one = BatchConfig::new().max_updates(1);
    for how in ["outage", "expiry", "crash", "stop"] {
        // Interrupts within the state, after it, after one of two vanished keys, and after both.
        for far in 0..4 {
            let mut script = Script::new();
            let disk = Disk::new();
            let replica =
                holding(&mut script, &disk, &["a=1", "b=1", "c=1", "d=1"]).await.batch(one);
            let (mut follower, feed) = repairing(&mut script, replica).await;
            feed.say(1, "a=1").say(100, "c=2");
            if far > 0 {
                feed.say(101, ".");
            }
            let mut told = Vec::new();
            for _ in 0..far {
                told.extend(follower.asks.done().await);
            }
            let ask = follower.asks.next().await;
            let mut follower = match how {
                "crash" => {
                    follower.crash().await;
                    let replica =
                        Replica::new(&script.store, WatchScope::All).storage(disk.clone());
                    Follower::start(replica.batch(one).retry(briskly(RetryPolicy::forever())))
                }
                "stop" => {
                    follower.stop.cancel();
                    // The batch that is being applied fails, so that it is not committed.
                    ask.fail("no");
                    let (replica, outcome) = follower.end().await;
                    assert_eq!(outcome.unwrap(), None);
                    Follower::start(replica)
                }
                how => {
                    feed.end(if how == "outage" { away() } else { expired() });
                    told.extend(crate::support::told(&ask.done()));
                    follower
                }
            };
            // The state is requested again in every case.
            let feed = loop {
                tokio::select! {
                    biased;
                    Some(ask) = follower.asks.wait() => {
                        told.extend(crate::support::told(&ask.done()));
                    }
                    opening = script.opening() => match opening.from {
                        // Either nothing of the resync was committed, or all of it.
                        Some(from) => {
                            let is_through = told.contains(&".".to_owned());
                            assert_eq!(from, cursor(if is_through { 101 } else { 90 }), "{how} {far}");
                            opening.refuse(expired());
                        }
                        None => break opening.accept(),
                    },
                }
            };
            let commits = disk.commits();
            feed.say(1, "a=1").all(100, &["c=2", "."]);
            let last = follower.asks.up_to(".").await;
            // Committed updates do not come again.
            let known = |word: &&String| commits.iter().any(|commit| commit.words.contains(word));
            let again = last.iter().filter(known).filter(|word| *word != ".").count();
            follower.current().await;
            follower.stop().await;
            assert_eq!(again, 0, "{how} {far}: {told:?}, then {last:?}");
            assert_eq!(disk.words(), ["a=1", "c=2"], "{how} {far}");
            assert_eq!(disk.kept().map(|checkpoint| checkpoint.cursor()), Some(cursor(101)));
        }
    }
}

#[tokio::test]
async fn without_a_place_but_with_something_held_it_repairs_itself() {
    let mut script = Script::new();
    let disk = Disk::new();
    drop(holding(&mut script, &disk, &["a=1", "b=1"]).await);
    disk.lose_place();
    let mut follower =
        Follower::start(Replica::new(&script.store, WatchScope::All).storage(disk.clone()));
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    opening.accept().say(2, "b=1").say(95, ".");
    assert_eq!(follower.asks.up_to(".").await, ["~a", "."]);
    assert_eq!(follower.monitor.progress().repairs, 1);
    follower.stop().await;
}

/// A cursor of a running watch can expire too.
#[tokio::test]
async fn a_watch_that_expires_while_it_is_followed_is_repaired() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower =
        Follower::start(Replica::new(&script.store, WatchScope::All).storage(disk.clone()));
    script.accept().await.all(1, &["a=1", "b=1", ".", "c=1"]).end(expired());
    // Collected updates are applied first.
    assert_eq!(follower.asks.up_to("c=1").await, ["a=1", "b=1", ".", "c=1"]);
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    assert!(!follower.monitor.progress().caught_up);
    opening.accept().say(2, "b=1").all(10, &["."]);
    let told = sorted(follower.asks.up_to(".").await);
    assert_eq!(told, [".", "~a", "~c"]);
    follower.current().await;
    follower.stop().await;
    assert_eq!(disk.words(), ["b=1"]);
}

/// A replica that holds nothing has nothing to resync.
#[tokio::test]
async fn a_replica_that_holds_nothing_begins_anew() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower =
        Follower::start(Replica::new(&script.store, WatchScope::All).storage(disk.clone()));
    let feed = script.accept().await;
    feed.all(1, &["a=1", "-a", "."]);
    follower.asks.up_to(".").await;
    feed.end(expired());
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    opening.accept().all(10, &["b=1", "."]);
    let batch = follower.asks.next().await.done();
    assert_eq!((told(&batch), batch.cursor()), (vec!["b=1".into(), ".".into()], Some(cursor(11))));
    assert_eq!(follower.monitor.progress().repairs, 0);
    follower.stop().await;
}

/// A resync counts once, however often its watch has to be opened.
#[tokio::test(start_paused = true)]
async fn a_repair_is_counted_when_the_state_is_taken() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = holding(&mut script, &disk, &["a=1"]).await;
    let mut follower = Follower::start(replica);
    script.opening().await.refuse(expired());
    for _ in 0..3 {
        script.opening().await.refuse(away());
    }
    let opening = script.opening().await;
    let progress = follower.monitor.progress();
    assert_eq!((progress.repairs, progress.applied, progress.caught_up), (0, None, false));
    opening.accept().say(1, "a=1").say(95, ".");
    follower.asks.up_to(".").await;
    assert_eq!(follower.monitor.progress().repairs, 1);
    follower.stop().await;
}

/// A key that is deleted and written again while the state is read is present.
#[tokio::test]
async fn tombstones_in_the_state_are_told() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = holding(&mut script, &disk, &["a=1", "b=1"]).await;
    let (mut follower, feed) = repairing(&mut script, replica).await;
    // This includes keys that are not held, because a crash may have come between applying and
    // committing.
    feed.all(91, &["-a", "-unknown", "b=2", "."]);
    assert_eq!(follower.asks.up_to(".").await, ["-a", "-unknown", "b=2", "."]);
    settle().await;
    eventually("it is kept", async || disk.words() == ["b=2"]).await;
    follower.stop().await;
}

/// The storage that keeps no values has enough data for a resync.
#[tokio::test]
async fn a_replica_with_its_storage_in_memory_repairs_itself() {
    let mut script = Script::new();
    let mut follower =
        Follower::start(Replica::new(&script.store, WatchScope::All).storage(MemoryStorage::new()));
    script.accept().await.all(1, &["a=1", "b=1", "c=1", "d=1", "-d", "."]);
    follower.asks.up_to(".").await;
    let (replica, end, _) = follower.stop().await;
    let mut follower = Follower::start(replica);
    let opening = script.opening().await;
    assert_eq!(opening.from, end);
    opening.refuse(expired());
    script.accept().await.say(1, "a=1").say(10, "b=2").say(11, ".");
    assert_eq!(follower.asks.up_to(".").await, ["b=2", "~c", "."]);
    let (replica, end, _) = follower.stop().await;

    // During a resync the storage has no checkpoint.
    let mut follower = Follower::start(replica.batch(BatchConfig::new().max_updates(1)));
    let opening = script.opening().await;
    assert_eq!(opening.from, end);
    opening.refuse(expired());
    let feed = script.accept().await;
    feed.say(12, "b=3");
    follower.asks.up_to("b=3").await;
    let applied = async || follower.monitor.progress().unapplied == 0;
    eventually("it is kept", applied).await;
    let (replica, end, _) = follower.stop().await;
    assert_eq!(end, None);
    let mut follower = Follower::start(replica);
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    opening.accept().say(12, "b=3").say(13, ".");
    assert_eq!(follower.asks.up_to(".").await, ["~a", "."]);
    follower.stop().await;
}

/// `apply` has these keys, and the storage never had them.
#[tokio::test]
async fn applied_but_uncommitted_key_vanishes_too() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower = Follower::start(
        Replica::new(&script.store, WatchScope::All)
            .storage(disk.clone())
            .retry(RetryPolicy::never()),
    );
    let feed = script.accept().await;
    // The first batch fails, perhaps after half of it was applied. The second is applied, but not
    // committed.
    feed.say(1, "a=1").say(2, ".");
    follower.asks.next().await.fail("half of it");
    let (replica, outcome) = follower.end().await;
    assert!(outcome.is_err());
    let mut follower = Follower::start(replica);
    script.accept().await.say(3, "b=1").say(4, ".");
    disk.fail("commit", 1, StorageError::fatal);
    assert_eq!(follower.asks.done().await, ["b=1"]);
    let (replica, outcome) = follower.end().await;
    assert!(outcome.is_err());
    assert_eq!(disk.words(), [""; 0]);
    let mut follower = Follower::start(replica);
    script.accept().await.say(5, "c=1").say(6, ".");
    assert_eq!(follower.asks.done().await, ["c=1"]);
    assert_eq!(sorted(follower.asks.done().await), ["~a", "~b"]);
    assert_eq!(follower.asks.done().await, ["."]);
    follower.current().await;
    let (replica, _, _) = follower.stop().await;
    assert_eq!(disk.words(), ["c=1"]);
    // The uncommitted keys are settled.
    disk.lose_place();
    let mut follower = Follower::start(replica);
    script.accept().await.say(5, "c=1").say(6, ".");
    assert_eq!(follower.asks.done().await, ["."]);
    follower.stop().await;
}
