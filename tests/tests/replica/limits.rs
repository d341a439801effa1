//! The limits of a batch, which also bound the memory.

use std::time::Duration;

use futures_util::stream;
use shizuku_kv::replica::Replica;
use shizuku_kv::{BatchConfig, Watch, WatchScope};
use shizuku_kv_tests::eventually;
use tokio::time::Instant;

use crate::disk::Disk;
use crate::script::{Feed, Script, cursor, expired, update};
use crate::support::{Ask, Follower, memory, settle, told, write};

const HOUR: Duration = Duration::from_secs(3600);

fn an_hour() -> BatchConfig {
    BatchConfig::new().window(HOUR)
}

async fn following(script: &mut Script, batch: BatchConfig) -> (Follower<Disk>, Feed) {
    let replica = Replica::new(&script.store, WatchScope::All).storage(Disk::new());
    let follower = Follower::start(replica.batch(batch));
    let feed = script.accept().await;
    (follower, feed)
}

fn puts(from: u64, to: u64) -> Vec<String> {
    (from..=to).map(|n| format!("k={n}")).collect()
}

fn say(feed: &Feed, from: u64, to: u64) {
    for n in from..=to {
        feed.say(n, &format!("k={n}"));
    }
}

#[tokio::test]
async fn a_batch_has_so_many_updates_at_most() {
    let mut script = Script::new();
    let (mut follower, feed) = following(&mut script, an_hour().max_updates(4)).await;
    say(&feed, 1, 10);
    assert_eq!(follower.asks.done().await, puts(1, 4));
    assert_eq!(follower.asks.done().await, puts(5, 8));
    eventually("the rest has come", async || feed.pulled() == 10).await;
    assert!(follower.asks.ready().is_none(), "nothing is due");
    assert_eq!(follower.stop().await.2, puts(9, 10));
}

#[tokio::test]
async fn the_marker_counts_as_an_update() {
    for max in 1..=3 {
        let mut script = Script::new();
        let (mut follower, feed) = following(&mut script, an_hour().max_updates(max)).await;
        feed.all(1, &["a=1", "b=1", "."]);
        let expected: Vec<Vec<&str>> = match max {
            1 => vec![vec!["a=1"], vec!["b=1"], vec!["."]],
            2 => vec![vec!["a=1", "b=1"], vec!["."]],
            _ => vec![vec!["a=1", "b=1", "."]],
        };
        for expected in expected {
            assert_eq!(follower.asks.done().await, expected);
        }
        follower.stop().await;
    }
}

#[tokio::test]
async fn a_batch_is_full_with_so_many_bytes_of_keys_and_values() {
    let mut script = Script::new();
    // Ten bytes each, except the last.
    let words =
        ["key1=valuea", "key2=valueb", "key3=valuec", "-tenletters", "key4=valued", "key5=value"];
    let (mut follower, feed) = following(&mut script, an_hour().max_bytes(30)).await;
    feed.all(1, &words);
    assert_eq!(follower.asks.done().await, words[..3]);
    eventually("the rest has come", async || feed.pulled() == 6).await;
    assert!(follower.asks.ready().is_none(), "29 bytes are less than 30");
    feed.say(7, "k=");
    assert_eq!(follower.asks.done().await, ["-tenletters", "key4=valued", "key5=value", "k="]);
    follower.stop().await;
}

#[tokio::test]
async fn one_update_alone_can_have_more_bytes() {
    let mut script = Script::new();
    let (mut follower, feed) = following(&mut script, an_hour().max_bytes(10)).await;
    let big = format!("big={}", "x".repeat(1000));
    feed.all(1, &[&big, "a=1", &big, &big, "."]);
    assert_eq!(follower.asks.done().await, [big.as_str()]);
    assert_eq!(follower.asks.done().await, ["a=1", big.as_str()]);
    assert_eq!(follower.asks.done().await, [big.as_str()]);
    assert_eq!(follower.asks.done().await, ["."]);
    follower.stop().await;
}

#[tokio::test(start_paused = true)]
async fn first_update_of_batch_waits_for_its_window() {
    let mut script = Script::new();
    let window = Duration::from_secs(10);
    let (mut follower, feed) = following(&mut script, BatchConfig::new().window(window)).await;
    for round in 0..3 {
        let at = round * 10;
        tokio::time::sleep(HOUR).await;
        let start = Instant::now();
        feed.say(at + 1, "a=1");
        tokio::time::sleep(window / 2).await;
        feed.say(at + 2, "b=1");
        tokio::time::sleep(window / 2 - Duration::from_millis(10)).await;
        feed.say(at + 3, "c=1");
        settle().await;
        assert!(follower.asks.ready().is_none(), "the window is open");
        assert_eq!(follower.asks.done().await, ["a=1", "b=1", "c=1"]);
        assert!(
            (window..window + Duration::from_millis(10)).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );
    }
}

/// A window that ends while the previous batch is applied has ended.
#[tokio::test(start_paused = true)]
async fn a_window_runs_while_apply_works() {
    let mut script = Script::new();
    let (mut follower, feed) =
        following(&mut script, BatchConfig::new().window(Duration::from_secs(10))).await;
    feed.say(1, "a=1");
    let ask = follower.asks.next().await;
    feed.say(2, "b=1");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(follower.asks.ready().is_none());
    let before = Instant::now();
    ask.done();
    assert_eq!(follower.asks.done().await, ["b=1"]);
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    // The next update starts a new window.
    feed.say(3, "c=1");
    settle().await;
    assert!(follower.asks.ready().is_none());
    assert_eq!(follower.asks.done().await, ["c=1"]);
    follower.stop().await;
}

/// Uses a clock that only moves when all tasks are idle.
#[tokio::test(start_paused = true)]
async fn without_a_window_nothing_waits() {
    let mut script = Script::new();
    let (mut follower, feed) =
        following(&mut script, BatchConfig::new().window(Duration::ZERO)).await;
    let before = Instant::now();
    // Timers have a resolution of milliseconds, so one without a length would end with the current
    // one.
    let moment = Duration::from_micros(300);
    for round in 0..10 {
        let at = round * 10;
        tokio::time::advance(moment).await;
        feed.say(at + 1, "a=1");
        let ask = follower.asks.next().await;
        feed.all(at + 2, &["b=1", "c=1"]);
        settle().await;
        assert!(follower.asks.ready().is_none());
        ask.done();
        // The updates of that time are one batch.
        assert_eq!(follower.asks.done().await, ["b=1", "c=1"]);
    }
    assert_eq!(before.elapsed(), moment * 10);
    follower.stop().await;
}

#[tokio::test]
async fn while_one_batch_is_applied_the_next_is_collected_and_no_more() {
    let mut script = Script::new();
    let (mut follower, feed) = following(&mut script, an_hour().max_updates(4)).await;
    say(&feed, 1, 100);
    let mut ask: Ask = follower.asks.next().await;
    for round in 1..=10 {
        eventually("the next is collected", async || feed.pulled() == 4 * round + 4).await;
        settle().await;
        assert_eq!(feed.pulled(), usize::min(4 * round + 4, 100));
        let at = 4 * round as u64;
        assert_eq!(told(&ask.done()), puts(at - 3, at));
        ask = follower.asks.next().await;
    }
}

/// Uses the state of a backend, not of a script: an update that is superseded before its turn never
/// comes.
#[tokio::test]
async fn a_slow_apply_holds_up_the_source() {
    let (_connection, store) = memory().await;
    write(&store, &["a=1"]).await;
    let batch = BatchConfig::new().max_updates(1);
    let mut follower = Follower::start(Replica::new(&store, WatchScope::All).batch(batch));
    assert_eq!(follower.asks.done().await, ["a=1"]);
    assert_eq!(follower.asks.done().await, ["."]);
    write(&store, &["a=2"]).await;
    let ask = follower.asks.next().await;
    write(&store, &["b=1"]).await;
    settle().await;
    for n in 0..1000 {
        write(&store, &[&format!("c={n}")]).await;
    }
    ask.done();
    assert_eq!(follower.asks.up_to("c=999").await, ["b=1", "c=999"]);
    follower.stop().await;
}

/// A source that always has an update does not keep a batch open for longer than its window.
#[tokio::test]
async fn a_window_ends_under_a_source_without_a_pause() {
    const MANY: u64 = 100_000;
    for window in [Duration::ZERO, Duration::from_millis(1)] {
        let mut script = Script::new();
        let batch = BatchConfig::new().window(window).max_updates(usize::MAX).max_bytes(usize::MAX);
        let mut follower =
            Follower::start(Replica::new(&script.store, WatchScope::All).batch(batch));
        let updates = stream::iter((1..=MANY).map(|n| Ok((update(n, "k=1"), cursor(n)))));
        script
            .opening()
            .await
            .with(Watch::new(futures_util::StreamExt::chain(updates, stream::pending())));
        let first = follower.asks.next().await.done();
        assert!(first.updates().len() < usize::try_from(MANY).unwrap(), "all in one batch");
        follower.crash().await;
    }
}

/// Other tasks on the thread have their turn meanwhile.
#[tokio::test]
async fn a_source_without_a_pause_can_be_stopped() {
    let mut script = Script::new();
    let batch = BatchConfig::new().window(HOUR).max_updates(2_000_000).max_bytes(usize::MAX);
    let follower = Follower::start(Replica::new(&script.store, WatchScope::All).batch(batch));
    let updates = stream::iter((1..=1_000_000).map(|n| Ok((update(n, "k=1"), cursor(n)))));
    script
        .opening()
        .await
        .with(Watch::new(futures_util::StreamExt::chain(updates, stream::pending())));
    follower.stop.cancel();
    let (_, end, last) = follower.stop().await;
    assert!(last.len() < 1_000_000, "all was collected before");
    assert_eq!(end.map_or(0, |end| end.position()), last.len() as u64);
}

/// Vanished keys are split into batches like other updates.
#[tokio::test]
async fn vanished_keys_come_in_batches_within_the_limits() {
    for (batch, most) in [(an_hour().max_updates(4), 4), (an_hour().max_bytes(6), 3)] {
        let mut script = Script::new();
        let disk = Disk::new();
        let replica = Replica::new(&script.store, WatchScope::All).storage(disk.clone());
        let mut follower = Follower::start(replica);
        let feed = script.accept().await;
        let keys: Vec<String> = (10..20).map(|n| n.to_string()).collect();
        let words: Vec<String> = keys.iter().map(|key| format!("{key}=x")).collect();
        feed.all(1, &words).say(99, ".");
        follower.asks.up_to(".").await;
        let (replica, _, _) = follower.stop().await;
        let mut follower = Follower::start(replica.batch(batch));
        script.opening().await.refuse(expired());
        script.accept().await.all(100, &["."]);
        let mut vanished = Vec::new();
        loop {
            let batch = follower.asks.next().await.done();
            if batch.is_caught_up() {
                assert_eq!(told(&batch), ["."]);
                break;
            }
            assert!((1..=most).contains(&batch.updates().len()), "{batch:?}");
            assert_eq!(batch.cursor(), None);
            vanished.extend(told(&batch));
        }
        assert_eq!(
            crate::support::sorted(vanished),
            keys.iter().map(|key| format!("~{key}")).collect::<Vec<_>>()
        );
        follower.stop().await;
        assert_eq!(disk.words(), [""; 0]);
    }
}
