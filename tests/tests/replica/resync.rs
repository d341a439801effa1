//! Resyncs: vanished keys are dropped, known entries do not come again, and no checkpoint is
//! committed before the end.

use futures_util::FutureExt;
use shizuku_kv::replica::{Replica, RetryPolicy, StorageError};
use shizuku_kv::{BatchConfig, KvOperation, KvUpdate, VersionToken};
use shizuku_kv_tests::eventually;

use crate::disk::Disk;
use crate::script::{Feed, Script, away, cursor, expired};
use crate::support::{Follower, briskly, real, sorted, told};

/// Returns a replica that holds the entries of `words`, up to a position.
async fn holding(script: &mut Script, disk: &Disk, words: &[&str]) -> Replica<Disk> {
    let mut follower = script.follow(disk);
    script.accept().await.all(1, words).say(90, ".");
    follower.asks.up_to(".").await;
    let (replica, end, _) = follower.stop().await;
    assert_eq!(end, Some(cursor(90)));
    replica.retry(briskly(RetryPolicy::forever()))
}

/// Starts it, and rejects its cursor. Returns the watch of the resync.
async fn resyncing(script: &mut Script, replica: Replica<Disk>) -> (Follower<Disk>, Feed) {
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
    let (mut follower, feed) = resyncing(&mut script, replica).await;
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
    assert_eq!((progress.resyncs, progress.caught_up, progress.applied), (1, false, None));
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
async fn monitor_reports_the_lost_cursor_before_the_resync() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = holding(&mut script, &disk, &["a=1"]).await;
    let follower = Follower::start(replica);
    let opening = script.opening().await;
    let (before, open) = (disk.calls("is_empty"), disk.gate("is_empty"));
    opening.refuse(expired());
    eventually("it is about to resync", async || disk.calls("is_empty") > before).await;
    let mut monitor = follower.monitor.clone();
    assert_eq!(monitor.progress().applied, Some(cursor(90)));
    while monitor.changed().now_or_never().is_some() {}
    drop(open);
    let progress = real(monitor.changed()).await.expect("a change").unwrap();
    assert_eq!((progress.applied, progress.resyncs), (None, 0));
    follower.stop().await;
}

#[tokio::test]
async fn resync_delivers_the_differences() {
    // The held entries, the state with its positions, the delivered updates, and the entries that
    // are held afterwards.
    type Row<'a> = (&'a [&'a str], &'a [(u64, &'a str)], &'a [&'a str], &'a [&'a str]);
    let rows: [Row<'_>; 3] = [
        (&["a=1", "b=1"], &[(1, "a=1"), (2, "b=1")], &["."], &["a=1", "b=1"]),
        // A server that is behind may show an older value before the held one.
        (
            &["x=1", "a=2", "b=2"],
            &[(1, "a=1"), (2, "a=2"), (1, "-b"), (3, "b=2")],
            &["a=1", "a=2", "-b", "b=2", "~x", "."],
            &["a=2", "b=2"],
        ),
        // Tombstones come, even of keys that are not held, because a crash may have come between
        // applying and committing.
        (
            &["a=1", "b=1"],
            &[(91, "-a"), (92, "-unknown"), (93, "b=2")],
            &["-a", "-unknown", "b=2", "."],
            &["b=2"],
        ),
    ];
    for (max, (held, state, told, left)) in
        [1, 100].into_iter().flat_map(|max| rows.map(|row| (max, row)))
    {
        let mut script = Script::new();
        let disk = Disk::new();
        let replica = holding(&mut script, &disk, held).await;
        let before = replica.monitor().progress().updates;
        let (mut follower, feed) =
            resyncing(&mut script, replica.batch(BatchConfig::new().max_updates(max))).await;
        for (position, word) in state {
            feed.say(*position, word);
        }
        feed.say(95, ".");
        assert_eq!(follower.asks.up_to(".").await, told, "{state:?}");
        follower.current().await;
        let updates = follower.monitor.progress().updates - before;
        assert_eq!(updates, told.len() as u64 - 1, "{state:?}");
        assert_eq!(follower.stop().await.1, Some(cursor(95)), "{state:?}");
        assert_eq!(disk.words(), left, "{state:?}");
    }
}

/// A recreated store counts from the start: the same version at another time is another value.
#[tokio::test]
async fn same_version_of_another_time_is_news() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = holding(&mut script, &disk, &["a=1", "b=1"]).await;
    let (mut follower, feed) = resyncing(&mut script, replica).await;
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

#[tokio::test(start_paused = true)]
async fn interrupted_resync_begins_again() {
    let one = BatchConfig::new().max_updates(1);
    for how in ["outage", "expiry", "crash", "stop"] {
        // Interrupts within the state, after it, after one of two vanished keys, and after both.
        for far in 0..4 {
            let mut script = Script::new();
            let disk = Disk::new();
            let replica =
                holding(&mut script, &disk, &["a=1", "b=1", "c=1", "d=1"]).await.batch(one);
            let (mut follower, feed) = resyncing(&mut script, replica).await;
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
                    let replica = script.replica(&disk);
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
            assert_eq!(disk.cursor(), Some(cursor(101)));
        }
    }
}

#[tokio::test]
async fn resync_stopped_before_its_state_has_no_cursor() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = holding(&mut script, &disk, &["a=1"]).await;
    let follower = Follower::start(replica);
    script.opening().await.refuse(expired());
    let pending = script.opening().await;
    assert_eq!(follower.monitor.progress().applied, None);
    assert_eq!(follower.stop().await.1, None);
    drop(pending);
}

#[tokio::test]
async fn held_entries_without_a_checkpoint_are_resynced() {
    let mut script = Script::new();
    let disk = Disk::new();
    drop(holding(&mut script, &disk, &["a=1", "b=1"]).await);
    disk.lose_checkpoint();
    let mut follower = script.follow(&disk);
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    opening.accept().say(2, "b=1").say(95, ".");
    assert_eq!(follower.asks.up_to(".").await, ["~a", "."]);
    assert_eq!(follower.monitor.progress().resyncs, 1);
    follower.stop().await;
}

/// A cursor of a running watch can expire too.
#[tokio::test]
async fn expiry_of_a_running_watch_causes_a_resync() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower = script.follow(&disk);
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

#[tokio::test]
async fn empty_replica_needs_no_resync() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower = script.follow(&disk);
    let feed = script.accept().await;
    feed.all(1, &["a=1", "-a", "."]);
    follower.asks.up_to(".").await;
    feed.end(expired());
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    opening.accept().all(10, &["b=1", "."]);
    let batch = follower.asks.next().await.done();
    assert_eq!((told(&batch), batch.cursor()), (vec!["b=1".into(), ".".into()], Some(cursor(11))));
    assert_eq!(follower.monitor.progress().resyncs, 0);
    follower.stop().await;
}

/// A resync counts once, however often its watch has to be opened.
#[tokio::test(start_paused = true)]
async fn resync_is_counted_when_its_watch_is_open() {
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
    assert_eq!((progress.resyncs, progress.applied, progress.caught_up), (0, None, false));
    opening.accept().say(1, "a=1").say(95, ".");
    follower.asks.up_to(".").await;
    assert_eq!(follower.monitor.progress().resyncs, 1);
    follower.stop().await;
}

/// `apply` has these keys, and the storage never had them.
#[tokio::test]
async fn applied_but_uncommitted_key_vanishes_too() {
    let mut script = Script::new();
    let disk = Disk::new();
    let mut follower = Follower::start(script.replica(&disk).retry(RetryPolicy::never()));
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
    disk.lose_checkpoint();
    let mut follower = Follower::start(replica);
    script.accept().await.say(5, "c=1").say(6, ".");
    assert_eq!(follower.asks.done().await, ["."]);
    follower.stop().await;
}
