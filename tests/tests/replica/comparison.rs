//! When a replica compares itself with its store, and what it concludes. The store is scripted.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::replica::Replica;
use shizuku_kv::{BatchConfig, WatchLink, WatchScope};

use crate::disk::Disk;
use crate::script::{Contents, Feed, Script, away, cursor, lock};
use crate::support::{Follower, settle};

const INTERVAL: Duration = Duration::from_secs(60);

/// Returns a replica of a script with `a` and `b`, and matching figures.
async fn scripted(script: &mut Script, disk: &Disk) -> (Follower<Disk>, Feed) {
    lock(&script.contents).figures = Some((2, 2));
    lock(&script.contents).entries = vec![(1, "a=1"), (2, "b=1")];
    let mut follower = script.follow(disk);
    let feed = script.accept().await;
    feed.all(1, &["a=1", "b=1"]);
    feed.say(2, ".");
    follower.asks.up_to(".").await;
    (follower, feed)
}

/// Starts that replica, and starts it again with other contents of the store.
async fn resumed(
    script: &mut Script,
    disk: &Disk,
    change: impl FnOnce(&mut Contents),
) -> (Follower<Disk>, Feed) {
    let (follower, _feed) = scripted(script, disk).await;
    follower.stop().await;
    change(&mut lock(&script.contents));
    let mut follower = script.follow(disk);
    let feed = script.accept().await;
    feed.say(2, ".");
    follower.asks.up_to(".").await;
    (follower, feed)
}

/// Interrupts the connection.
async fn interrupt(feed: &Feed) {
    feed.link(WatchLink::down(std::time::SystemTime::now(), "away"));
    settle().await;
    feed.link(WatchLink::Up);
}

fn requests(script: &Script) -> (usize, usize) {
    let contents = lock(&script.contents);
    (contents.figure_requests, contents.listings)
}

/// Uses the clock of the test.
#[tokio::test(start_paused = true)]
async fn busy_store_is_counted_and_not_listed() {
    let mut script = Script::new();
    let (mut follower, feed) = scripted(&mut script, &Disk::new()).await;
    let (mut position, mut keys) = (2_u64, 2);
    let mut say = |word: &str| {
        position += 1;
        feed.say(position, word);
        position
    };
    for round in 1..=5 {
        // Values that are new, written again, deleted, and written over their tombstones; a
        // tombstone of a key that is new.
        let new = format!("n{round}=1");
        let never = format!("-never{round}");
        for word in [&new, "a=2", "-a", "a=3", &never] {
            say(word);
            follower.asks.done().await;
        }
        keys += 2;
        // The leader has a change that arrives only after the figures, and others after it.
        let contents = Arc::clone(&script.contents);
        lock(&contents).figures = Some((round * 8, keys + 1));
        let before = requests(&script).0;
        for _ in 0..100 {
            if requests(&script).0 > before {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let late = format!("late{round}=1");
        let last = format!("later{round}=1");
        assert_eq!(say(&late), round * 8);
        say(&last);
        say("b=2");
        keys += 2;
        follower.asks.up_to("b=2").await;
        settle().await;
        assert_eq!(requests(&script), (before + 1, 0));
    }
    assert!(follower.monitor.progress().is_current());
    assert_eq!(follower.monitor.progress().resyncs, 0);
    follower.stop().await;
}

/// The first value of a key may be superseded before its turn. The key is then counted, and arrives
/// later.
#[tokio::test(start_paused = true)]
async fn key_that_arrives_late_is_counted_again_before_a_listing() {
    let mut script = Script::new();
    let (follower, _feed) = scripted(&mut script, &Disk::new()).await;
    lock(&script.contents).figures = Some((2, 3));
    let before = requests(&script).0;
    let is_counted = async {
        while requests(&script).0 == before {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(2 * INTERVAL, is_counted).await.expect("a count");
    settle().await;
    lock(&script.contents).figures = Some((2, 2));
    tokio::time::sleep(INTERVAL).await;
    settle().await;
    let (counts, listings) = requests(&script);
    assert!(counts > before + 1 && listings == 0, "{counts} counts, {listings} listings");
    follower.stop().await;
}

#[tokio::test(start_paused = true)]
async fn fruitless_listings_become_rare() {
    let mut script = Script::new();
    let (follower, _feed) = scripted(&mut script, &Disk::new()).await;
    let mut listed = Vec::new();
    for minute in 1..=40_u64 {
        // Other tombstones each time, which no watch delivers.
        lock(&script.contents).figures = Some((2, 2 + minute));
        let before = requests(&script).1;
        tokio::time::sleep(INTERVAL).await;
        settle().await;
        listed.extend((requests(&script).1 > before).then_some(minute));
    }
    assert_eq!(listed.len(), 6, "{listed:?}");
    assert!(requests(&script).0 >= 40);
    assert!(follower.monitor.progress().is_current());
    assert_eq!(follower.monitor.progress().resyncs, 0);
    follower.stop().await;
}

#[tokio::test(start_paused = true)]
async fn missing_key_is_found_by_the_count() {
    let mut script = Script::new();
    let disk = Disk::new();
    let (mut follower, feed) = scripted(&mut script, &disk).await;
    lock(&script.contents).figures = Some((2, 1));
    lock(&script.contents).entries = vec![(1, "a=1")];
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    feed.left().await;
    opening.accept().say(1, "a=1").say(2, ".");
    assert_eq!(follower.asks.up_to(".").await, ["~b", "."]);
    follower.stop().await;
    assert_eq!(disk.words(), ["a=1"]);
}

/// The count is the same, but the server has an older value of a key that does not change any more.
#[tokio::test(start_paused = true)]
async fn older_copy_is_found_after_an_outage() {
    for is_told_by_link in [true, false] {
        let mut script = Script::new();
        let disk = Disk::new();
        let (mut follower, mut feed) = scripted(&mut script, &disk).await;
        if is_told_by_link {
            interrupt(&feed).await;
        } else {
            feed.end(away());
            let opening = script.opening().await;
            assert_eq!(opening.from, Some(cursor(2)));
            feed = opening.accept();
            feed.say(2, ".");
            follower.asks.up_to(".").await;
        }
        // `a` is unchanged, the value of `b` at 2 is lost, and `c` has been written past it.
        lock(&script.contents).figures = Some((3, 3));
        lock(&script.contents).entries = vec![(1, "a=1"), (0, "b=0"), (3, "c=1")];
        feed.say(3, "c=1");
        assert_eq!(follower.asks.done().await, ["c=1"]);
        let opening = script.opening().await;
        assert_eq!(opening.from, None);
        opening.accept().say(0, "b=0").say(1, "a=1").say(3, "c=1").say(3, ".");
        assert_eq!(follower.asks.up_to(".").await, ["b=0", "."]);
        follower.stop().await;
        assert_eq!(disk.words(), ["a=1", "b=0", "c=1"]);
    }
}

/// In a scope that cannot be counted, the server has the same keys, and an older value of one.
#[tokio::test(start_paused = true)]
async fn older_copy_of_an_uncountable_scope_is_found() {
    let older = |contents: &mut Contents| {
        contents.is_uncountable = true;
        contents.entries = vec![(1, "a=1"), (0, "b=0")];
    };
    for is_resumed in [true, false] {
        let mut script = Script::new();
        let disk = Disk::new();
        let (mut follower, feed) = if is_resumed {
            resumed(&mut script, &disk, older).await
        } else {
            let (follower, feed) = scripted(&mut script, &disk).await;
            older(&mut lock(&script.contents));
            interrupt(&feed).await;
            (follower, feed)
        };
        let opening = script.opening().await;
        assert_eq!(opening.from, None);
        feed.left().await;
        assert!(!follower.monitor.progress().is_current());
        opening.accept().say(0, "b=0").say(1, "a=1").say(1, ".");
        assert_eq!(follower.asks.up_to(".").await, ["b=0", "."]);
        follower.stop().await;
        assert_eq!(disk.words(), ["a=1", "b=0"]);
    }
}

/// A replica that has resumed, and received no update since, remembers no delivery. Its stored
/// entries prove after an outage that the store is the same.
#[tokio::test(start_paused = true)]
async fn same_store_is_recognized_by_a_quiet_resumed_replica() {
    for is_uncountable in [false, true] {
        let mut script = Script::new();
        let change = |contents: &mut Contents| contents.is_uncountable = is_uncountable;
        let (follower, feed) = resumed(&mut script, &Disk::new(), change).await;
        follower.current().await;
        interrupt(&feed).await;
        tokio::time::sleep(INTERVAL * 3).await;
        settle().await;
        assert_eq!(requests(&script).1 > 0, is_uncountable);
        assert_eq!(follower.monitor.progress().resyncs, 0);
        assert!(follower.monitor.progress().is_current());
        follower.stop().await;
    }
}

/// After an outage without changes, one key is looked up, and no state is read again.
#[tokio::test(start_paused = true)]
async fn same_store_is_recognized_after_an_outage() {
    let mut script = Script::new();
    let (follower, feed) = scripted(&mut script, &Disk::new()).await;
    interrupt(&feed).await;
    tokio::time::sleep(INTERVAL * 3).await;
    settle().await;
    assert_eq!(requests(&script).1, 0);
    assert_eq!(follower.monitor.progress().resyncs, 0);
    assert!(follower.monitor.progress().is_current());
    follower.stop().await;
}

/// A tombstone that has reached its age, or was replaced by the marker of its end, does not show
/// that the store is an older copy.
#[tokio::test(start_paused = true)]
async fn tombstone_that_ended_is_no_reason_to_read_again() {
    for marker in [None, Some((4, "!b"))] {
        let mut script = Script::new();
        let (mut follower, feed) = scripted(&mut script, &Disk::new()).await;
        feed.say(3, "-b").say(5, "c=1");
        follower.asks.up_to("c=1").await;
        lock(&script.contents).entries =
            [(1, "a=1"), (6, "c=2")].into_iter().chain(marker).collect();
        lock(&script.contents).figures = Some((6, 2 + u64::from(marker.is_some())));
        interrupt(&feed).await;
        let opening = script.opening().await;
        assert_eq!(opening.from, Some(cursor(1)), "the watch resumes after the cursor");
        let again = opening.accept();
        marker.map(|(position, word)| again.say(position, word));
        again.say(6, "c=2").say(6, ".");
        feed.say(6, "c=2");
        assert_eq!(follower.asks.done().await, ["c=2"]);
        tokio::time::sleep(INTERVAL * 3).await;
        settle().await;
        assert_eq!(follower.monitor.progress().resyncs, 0);
        assert!(follower.monitor.progress().is_current());
        follower.stop().await;
    }
}

/// A run that resumes from a checkpoint is current only once it knows that no update was missed.
#[tokio::test(start_paused = true)]
async fn current_only_after_the_first_comparison() {
    let mut script = Script::new();
    let change = |contents: &mut Contents| contents.figures = Some((5, 2));
    let (mut follower, feed) = resumed(&mut script, &Disk::new(), change).await;
    settle().await;
    // The store has a change that has not arrived.
    assert!(!follower.monitor.progress().is_current());
    feed.say(5, "b=2");
    assert_eq!(follower.asks.done().await, ["b=2"]);
    follower.current().await;
    assert_eq!(requests(&script).1, 0);
    follower.stop().await;
}

/// A rejected comparison proves nothing: the replica is not current, reports the reason, and
/// compares again.
#[tokio::test(start_paused = true)]
async fn rejected_first_comparison_is_no_proof() {
    let mut script = Script::new();
    let change = |contents: &mut Contents| contents.refuses_figures = true;
    let (mut follower, feed) = resumed(&mut script, &Disk::new(), change).await;
    let before = requests(&script).0;
    tokio::time::sleep(INTERVAL * 2).await;
    settle().await;
    let progress = follower.monitor.progress();
    assert!(!progress.is_current(), "{progress:?}");
    let reason = progress.comparison_error.expect("a reason").to_string();
    assert!(reason.contains("no permission for figures"), "{reason}");
    assert!(requests(&script).0 > before, "it compares again");
    // An applied update is not a proof either.
    feed.say(3, "c=1");
    assert_eq!(follower.asks.done().await, ["c=1"]);
    settle().await;
    assert!(!follower.monitor.progress().is_current());
    lock(&script.contents).figures = Some((3, 3));
    lock(&script.contents).entries.push((3, "c=1"));
    lock(&script.contents).refuses_figures = false;
    follower.current().await;
    assert!(follower.monitor.progress().comparison_error.is_none());
    follower.stop().await;
}

/// Updates that were collected before the comparison are applied and committed first.
#[tokio::test(start_paused = true)]
async fn collected_updates_are_kept_before_the_comparison() {
    let mut script = Script::new();
    let replica = Replica::new(&script.store, WatchScope::All).storage(Disk::new());
    let window = Duration::from_secs(600);
    let mut follower = Follower::start(replica.batch(BatchConfig::new().window(window)));
    let feed = script.accept().await;
    feed.all(1, &["a=1", ".", "b=1"]);
    assert_eq!(follower.asks.done().await, ["a=1", "."]);
    let batch = follower.asks.next().await.done();
    assert_eq!(
        (crate::support::told(&batch), batch.cursor()),
        (vec!["b=1".to_owned()], Some(cursor(3)))
    );
    follower.stop().await;
}

#[tokio::test(start_paused = true)]
async fn interval_that_no_clock_can_express_never_ends() {
    let mut script = Script::new();
    let replica = Replica::new(&script.store, WatchScope::All).compare_every(Duration::MAX);
    let mut follower = Follower::start(replica);
    script.accept().await.say(1, ".");
    follower.asks.up_to(".").await;
    settle().await;
    follower.stop().await;
}
