//! Entries that leave the store without a message: a comparison with the store finds them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, kv, stream};
use shizuku_kv::replica::Replica;
use shizuku_kv::{BatchConfig, Store, WatchLink, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually, unique};

use crate::disk::Disk;
use crate::script::{Contents, Feed, Script, away, cursor, lock};
use crate::support::{Follower, settle, write};

const LONG: Duration = Duration::from_secs(3600);

/// A bucket of another client, whose values expire without a marker. Only a comparison finds an
/// entry that left it, because no watch of it compares figures (ADR 0064).
async fn silent(age: Duration) -> (String, Store) {
    let server = NatsServer::shared();
    let name = unique("silent");
    let config = kv::Config { bucket: name.clone(), max_age: age, ..kv::Config::default() };
    jetstream::new(server.client().await).create_key_value(config).await.unwrap();
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    (name, store)
}

#[tokio::test]
async fn key_expired_without_message_vanishes() {
    let (_, store) = silent(Duration::from_secs(2)).await;
    let disk = Disk::new();
    write(&store, &["a=1", "b=1"]).await;
    let replica = Replica::new(&store, WatchScope::All).storage(disk.clone());
    let mut follower = Follower::start(replica.compare_every(Duration::from_secs(1)));
    assert_eq!(follower.asks.up_to(".").await, ["a=1", "b=1", "."]);
    follower.current().await;
    let mut all = Vec::new();
    while !["~a", "~b"].iter().all(|word| all.iter().any(|told| told == word)) {
        all.extend(follower.asks.done().await);
    }
    assert!(!all.iter().any(|word| word.contains('=')), "{all:?}");
    follower.asks.up_to(".").await;
    eventually("it is kept", async || disk.words().is_empty()).await;
    assert!(follower.monitor.progress().repairs >= 1);
    // Later updates still come.
    write(&store, &["c=1"]).await;
    assert!(
        follower.asks.up_to("c=1").await.iter().all(|word| ["c=1", "."].contains(&word.as_str()))
    );
    follower.stop().await;
}

/// Follows a scope with short intervals of comparison. `remove` removes one key without a message.
async fn vanishes(
    store: &Store,
    scope: WatchScope,
    remove: impl Future<Output = ()>,
    (vanished, left): (&str, &[&str]),
) {
    let disk = Disk::new();
    let replica = Replica::new(store, scope).storage(disk.clone());
    let mut follower = Follower::start(replica.compare_every(Duration::from_secs(1)));
    follower.asks.up_to(".").await;
    remove.await;
    let told = follower.asks.up_to(vanished).await;
    assert!(!left.iter().any(|word| told.contains(&(*word).to_owned())), "{told:?}");
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    assert_eq!(disk.words(), left);
}

/// A purge by subject leaves nothing, and no tombstone either.
#[tokio::test]
async fn key_removed_by_operator_vanishes() {
    let (name, store) = silent(LONG).await;
    write(&store, &["a=1", "b=1", "c=1"]).await;
    vanishes(&store, WatchScope::All, purge(&name, "b"), ("~b", &["a=1", "c=1"])).await;
}

/// The removal of entries outside the scope is ignored.
#[tokio::test]
async fn prefix_is_compared_by_its_own_count() {
    let (name, store) = silent(LONG).await;
    write(&store, &["a.x=1", "a.y=1", "a.z=1", "-a.z", "b.x=1"]).await;
    let remove = async {
        purge(&name, "b.x").await;
        purge(&name, "a.x").await;
    };
    vanishes(&store, WatchScope::prefix("a."), remove, ("~a.x", &["a.y=1"])).await;
}

/// The bucket has an age limit too, so that no watch of it compares figures.
#[tokio::test]
async fn expiry_of_one_value_is_found() {
    if !NatsServer::shared().is_at_least(2, 11) {
        return;
    }
    let limits = |config: &mut stream::Config| {
        (config.allow_message_ttl, config.max_age) = (true, LONG);
    };
    let (name, store) = bucket(limits).await;
    write(&store, &["a=1", "b=1"]).await;
    vanishes(&store, WatchScope::All, expire(&name, &store, "b"), ("~b", &["a=1"])).await;
}

/// Returns a bucket of another client with a changed configuration of its stream.
async fn bucket(change: impl FnOnce(&mut stream::Config)) -> (String, Store) {
    let server = NatsServer::shared();
    let name = unique("silent");
    let context = jetstream::new(server.client().await);
    let mut config = stream::Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..stream::Config::default()
    };
    change(&mut config);
    context.create_stream(config).await.unwrap();
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    (name, store)
}

async fn purge(name: &str, key: &str) {
    let context = jetstream::new(NatsServer::shared().client().await);
    let stream = context.get_stream(format!("KV_{name}")).await.unwrap();
    stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
}

/// Follows a bucket, stops while `remove` removes `b`, and is started again with the default
/// interval.
async fn away_while(store: &Store, scope: &WatchScope, remove: impl Future<Output = ()>) {
    let disk = Disk::new();
    write(store, &["a=1", "b=1", "c=1", "-c"]).await;
    let mut follower = Follower::start(Replica::new(store, scope.clone()).storage(disk.clone()));
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    remove.await;
    let mut follower = Follower::start(Replica::new(store, scope.clone()).storage(disk.clone()));
    let told = follower.asks.up_to("~b").await;
    assert!(!follower.monitor.progress().is_current(), "it is not current before: {told:?}");
    follower.asks.up_to(".").await;
    follower.current().await;
    assert_eq!(follower.monitor.progress().repairs, 1);
    follower.stop().await;
    assert!(disk.words().iter().all(|word| !word.starts_with("b=")), "{:?}", disk.words());
    // The next comparison finds no difference.
    let mut follower = Follower::start(Replica::new(store, scope.clone()).storage(disk.clone()));
    follower.asks.up_to(".").await;
    follower.current().await;
    assert_eq!(follower.monitor.progress().repairs, 0);
    follower.stop().await;
}

#[tokio::test]
async fn purge_by_an_operator_while_away_is_found() {
    for scope in [WatchScope::All, WatchScope::prefix(""), WatchScope::prefixes(["a", "b", "c"])] {
        let (name, store) = bucket(|_| {}).await;
        away_while(&store, &scope, purge(&name, "b")).await;
    }
}

#[tokio::test]
async fn tombstone_purged_while_away_is_found() {
    let (name, store) = bucket(|_| {}).await;
    let remove = async {
        write(&store, &["-b"]).await;
        purge(&name, "b").await;
    };
    away_while(&store, &WatchScope::All, remove).await;
}

#[tokio::test]
async fn eviction_while_away_is_found() {
    let (_, store) = bucket(|config| {
        config.max_messages = 3;
        config.discard = stream::DiscardPolicy::Old;
    })
    .await;
    // Without another write, `a` would be evicted for `d`.
    let remove = async { write(&store, &["a=2", "d=1"]).await };
    away_while(&store, &WatchScope::All, remove).await;
}

/// Another client replaces a value by one with a time to live, and waits until it has expired.
async fn expire(name: &str, store: &Store, key: &str) {
    let context = jetstream::new(NatsServer::shared().client().await);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-TTL", "1s");
    let sent = context.publish_with_headers(format!("$KV.{name}.{key}"), headers, "2".into()).await;
    sent.unwrap().await.unwrap();
    eventually("it expires", async || store.entry(key).await.unwrap().is_none()).await;
}

/// The watch rejects the checkpoint too, because tombstones of other clients can vanish as well.
#[tokio::test]
async fn expiry_of_one_value_while_away_is_found() {
    if !NatsServer::shared().is_at_least(2, 11) {
        // Times to live of single messages came with 2.11.
        return;
    }
    let (name, store) = bucket(|config| config.allow_message_ttl = true).await;
    away_while(&store, &WatchScope::All, expire(&name, &store, "b")).await;
}

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

fn looks(script: &Script) -> (usize, usize) {
    let contents = lock(&script.contents);
    (contents.looks, contents.listings)
}

/// Uses the clock of the test.
#[tokio::test(start_paused = true)]
async fn busy_store_is_looked_at_and_not_listed() {
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
        let before = looks(&script).0;
        for _ in 0..100 {
            if looks(&script).0 > before {
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
        assert_eq!(looks(&script), (before + 1, 0));
    }
    assert!(follower.monitor.progress().is_current());
    assert_eq!(follower.monitor.progress().repairs, 0);
    follower.stop().await;
}

#[tokio::test(start_paused = true)]
async fn listings_that_find_nothing_grow_rare() {
    let mut script = Script::new();
    let (follower, _feed) = scripted(&mut script, &Disk::new()).await;
    let mut listed = Vec::new();
    for minute in 1..=40_u64 {
        // Other tombstones each time, which no watch delivers.
        lock(&script.contents).figures = Some((2, 2 + minute));
        let before = looks(&script).1;
        tokio::time::sleep(INTERVAL).await;
        settle().await;
        listed.extend((looks(&script).1 > before).then_some(minute));
    }
    assert_eq!(listed.len(), 6, "{listed:?}");
    assert!(looks(&script).0 >= 40);
    assert!(follower.monitor.progress().is_current());
    assert_eq!(follower.monitor.progress().repairs, 0);
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

/// After an outage without changes, one key is looked up, and no state is read again.
#[tokio::test(start_paused = true)]
async fn same_store_is_recognized_after_an_outage() {
    let mut script = Script::new();
    let (follower, feed) = scripted(&mut script, &Disk::new()).await;
    interrupt(&feed).await;
    tokio::time::sleep(INTERVAL * 3).await;
    settle().await;
    assert_eq!(looks(&script).1, 0);
    assert_eq!(follower.monitor.progress().repairs, 0);
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
        assert_eq!(follower.monitor.progress().repairs, 0);
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
    assert_eq!(looks(&script).1, 0);
    follower.stop().await;
}

/// A rejected comparison proves nothing: the replica is not current, reports the reason, and
/// compares again.
#[tokio::test(start_paused = true)]
async fn rejected_first_comparison_is_no_proof() {
    let mut script = Script::new();
    let change = |contents: &mut Contents| contents.refuses_figures = true;
    let (mut follower, feed) = resumed(&mut script, &Disk::new(), change).await;
    let before = looks(&script).0;
    tokio::time::sleep(INTERVAL * 2).await;
    settle().await;
    let progress = follower.monitor.progress();
    assert!(!progress.is_current(), "{progress:?}");
    let reason = progress.comparison_error.expect("a reason").to_string();
    assert!(reason.contains("no permission for figures"), "{reason}");
    assert!(looks(&script).0 > before, "it compares again");
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

/// The comparison has to list the keys of the scope, but the stream has no room for another
/// consumer.
#[tokio::test]
async fn comparison_without_room_for_its_listing_is_no_proof() {
    let (name, store) = bucket(|config| config.max_consumers = 2).await;
    let scope = WatchScope::prefixes(["a", "b", "c"]);
    let disk = Disk::new();
    write(&store, &["a=1", "b=1", "c=1"]).await;
    let mut follower = Follower::start(Replica::new(&store, scope.clone()).storage(disk.clone()));
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    purge(&name, "b").await;
    let server = NatsServer::shared();
    eventually("its consumers are gone", async || server.consumers(&name).await.is_empty()).await;
    let other = store.watch(WatchScope::All).await.unwrap();
    let store = store.with_deadline(Duration::from_secs(1));
    let mut follower = Follower::start(Replica::new(&store, scope).storage(disk.clone()));
    follower.asks.up_to(".").await;
    let mut monitor = follower.monitor.clone();
    let reason = loop {
        let progress = monitor.progress();
        assert!(!progress.is_current(), "it still holds b: {:?}", disk.words());
        match progress.comparison_error {
            Some(error) => break error.to_string(),
            None => drop(crate::support::real(monitor.changed()).await.expect("a change")),
        }
    };
    assert!(reason.contains("consumer"), "{reason}");
    drop(other);
    follower.asks.up_to("~b").await;
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    assert_eq!(disk.words(), ["a=1", "c=1"]);
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
