//! The limits of a batch, which also bound the memory.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use shizuku_kv::replica::Replica;
use shizuku_kv::{BatchConfig, Watch, WatchScope};
use shizuku_kv_tests::eventually;
use tokio::time::Instant;

use crate::disk::Disk;
use crate::script::{Feed, Script, cursor, expired, update};
use crate::support::{Ask, Follower, settle, told};

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

#[tokio::test]
async fn batch_ends_when_it_is_full() {
    let big = format!("big={}", "x".repeat(1000));
    let big = big.as_str();
    // All have ten bytes, except the last two.
    let ten = ["key1=valuea", "key2=valueb", "key3=valuec"];
    let filled = ["-tenletters", "key4=valued", "key5=value", "k="];
    // The limits, the full batches, and the updates of one that is not full.
    type Row<'a> = (BatchConfig, &'a [&'a [&'a str]], &'a [&'a str]);
    let rows: [Row<'_>; 7] = [
        (an_hour().max_updates(2), &[&["a=1", "b=1"], &["c=1", "d=1"]], &["e=1"]),
        // The marker counts as an update, and ends its batch.
        (an_hour().max_updates(1), &[&["a=1"], &["b=1"], &["."]], &[]),
        (an_hour().max_updates(2), &[&["a=1", "b=1"], &["."]], &[]),
        (an_hour().max_updates(3), &[&["a=1", "b=1", "."]], &[]),
        // Keys and values count, and the rest has 29 bytes.
        (an_hour().max_bytes(30), &[&ten], &filled[..3]),
        (an_hour().max_bytes(30), &[&ten, &filled], &[]),
        // One update alone can have more bytes.
        (an_hour().max_bytes(10), &[&[big], &["a=1", big], &[big], &["."]], &[]),
    ];
    for (batch, full, rest) in rows {
        let mut script = Script::new();
        let (mut follower, feed) = following(&mut script, batch).await;
        let words = [full.concat(), rest.to_vec()].concat();
        feed.all(1, &words);
        for expected in full {
            assert_eq!(follower.asks.done().await, *expected, "{batch:?}");
        }
        eventually("the rest has come", async || feed.pulled() == words.len()).await;
        assert!(follower.asks.ready().is_none(), "{batch:?}: the rest is not due");
        assert_eq!(follower.stop().await.2, rest, "{batch:?}");
    }
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
async fn window_runs_while_apply_works() {
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
        let pulled = feed.pulled() + 2;
        feed.all(at + 2, &["b=1", "c=1"]);
        // No sleep, so that the clock stands still.
        while feed.pulled() < pulled {
            tokio::task::yield_now().await;
        }
        assert!(follower.asks.ready().is_none());
        ask.done();
        // The updates of that time are one batch.
        assert_eq!(follower.asks.done().await, ["b=1", "c=1"]);
    }
    assert_eq!(before.elapsed(), moment * 10);
    follower.stop().await;
}

#[tokio::test]
async fn one_batch_is_collected_while_another_is_applied() {
    let mut script = Script::new();
    let (mut follower, feed) = following(&mut script, an_hour().max_updates(4)).await;
    let words: Vec<String> = (0..100).map(|n| format!("k={n}")).collect();
    feed.all(1, &words);
    let mut ask: Ask = follower.asks.next().await;
    for (round, batch) in words.chunks(4).enumerate().take(10) {
        let pulled = 4 * (round + 2);
        eventually("the next is collected", async || feed.pulled() == pulled).await;
        settle().await;
        assert_eq!(feed.pulled(), pulled);
        assert_eq!(told(&ask.done()), batch);
        ask = follower.asks.next().await;
    }
}

/// Answers the next opening with a watch that always has an update, up to this many.
async fn without_pause(script: &mut Script, many: u64) {
    let updates = stream::iter((1..=many).map(|n| Ok((update(n, "k=1"), cursor(n)))));
    script.opening().await.with(Watch::new(updates.chain(stream::pending())));
}

/// A source that always has an update does not keep a batch open for longer than its window.
#[tokio::test]
async fn window_ends_under_a_source_without_pause() {
    const MANY: u64 = 100_000;
    for window in [Duration::ZERO, Duration::from_millis(1)] {
        let mut script = Script::new();
        let batch = BatchConfig::new().window(window).max_updates(usize::MAX).max_bytes(usize::MAX);
        let mut follower =
            Follower::start(Replica::new(&script.store, WatchScope::All).batch(batch));
        without_pause(&mut script, MANY).await;
        let first = follower.asks.next().await.done();
        assert!(first.updates().len() < usize::try_from(MANY).unwrap(), "all in one batch");
        follower.crash().await;
    }
}

/// Other tasks on the thread have their turn meanwhile.
#[tokio::test]
async fn source_without_pause_can_be_stopped() {
    let mut script = Script::new();
    let batch = BatchConfig::new().window(HOUR).max_updates(2_000_000).max_bytes(usize::MAX);
    let follower = Follower::start(Replica::new(&script.store, WatchScope::All).batch(batch));
    without_pause(&mut script, 1_000_000).await;
    follower.stop.cancel();
    let (_, end, last) = follower.stop().await;
    assert!(last.len() < 1_000_000, "all was collected before");
    assert_eq!(end.map_or(0, |end| end.position()), last.len() as u64);
}

#[tokio::test]
async fn vanished_keys_are_split_into_batches() {
    for (batch, most) in [(an_hour().max_updates(4), 4), (an_hour().max_bytes(6), 3)] {
        let mut script = Script::new();
        let disk = Disk::new();
        let replica = script.replica(&disk);
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
