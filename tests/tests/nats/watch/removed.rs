//! Messages that are removed before their turn: superseded, purged or evicted. In a stream with a
//! history, a consumer of the newest messages stops at each such position, and reports that no
//! message is pending.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shizuku_kv::{
    Connection, KvUpdate, Store, StoreConfig, VersionToken, Watch, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, Random, unique};

use super::{next, pause_consumer};

async fn with_history(history: u8) -> (&'static NatsServer, Store) {
    let server = NatsServer::shared();
    let config = StoreConfig::new().history(history);
    let connection = connect(&server.url()).await.unwrap();
    (server, connection.store_with_config(&unique("removed"), config).await.unwrap())
}

/// Writes more messages than one pull request of a consumer, so that most of them wait on the
/// server.
async fn fill(store: &Store, keys: usize) {
    let items = (0..keys).map(|number| (format!("key.{number:05}"), "value"));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
}

/// Returns the entries of a watch up to its caught-up marker: the newest version of each key, after
/// checking that no version goes back.
async fn state(watch: &mut Watch) -> BTreeMap<String, VersionToken> {
    let mut state = BTreeMap::new();
    loop {
        let entry = match next(watch).await.unwrap() {
            KvUpdate::CaughtUp => return state,
            update => update.into_entry().unwrap(),
        };
        let before = state.insert(entry.key.to_string(), entry.version);
        assert!(
            before.is_none_or(|before| before.as_u64() < entry.version.as_u64()),
            "{}",
            entry.key
        );
    }
}

#[tokio::test]
async fn watch_delivers_keys_behind_superseded_messages() {
    const KEYS: usize = 12_000;
    let (_, store) = with_history(2).await;
    fill(&store, KEYS).await;
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    next(&mut watch).await.unwrap();
    for round in 0..2 {
        let items =
            (0..20).map(|number| (format!("key.{:05}", 9_000 + 50 * number), round.to_string()));
        assert!(store.put_many(items).await.iter().all(Result::is_ok));
    }
    // The first arrived before.
    assert_eq!(state(&mut watch).await.len(), KEYS - 1);
}

#[tokio::test]
async fn scan_lists_keys_behind_superseded_messages() {
    const KEYS: usize = 12_000;
    for purges in [false, true] {
        let (_, store) = with_history(2).await;
        fill(&store, KEYS).await;
        let scan = store.scan(WatchScope::All);
        let keys = store.keys(WatchScope::All);
        let mut found = Vec::new();
        let mut listed = Vec::new();
        for _ in 0..10 {
            found.push(scan.next().await.unwrap().unwrap().key);
            listed.push(keys.next().await.unwrap().unwrap());
        }
        for number in 0..10 {
            let key = format!("key.{:05}", 9_000 + 50 * number);
            if purges {
                store.purge(&key).await.unwrap();
            }
            for round in 0..2 {
                store.put(&key, round.to_string()).await.unwrap();
            }
        }
        let rest: Vec<_> = scan.try_collect().await.unwrap();
        found.extend(rest.into_iter().map(|entry| entry.key));
        let rest: Vec<_> = keys.try_collect().await.unwrap();
        listed.extend(rest);
        for keys in [found, listed] {
            let distinct: BTreeSet<_> = keys.iter().collect();
            assert_eq!((keys.len(), distinct.len()), (KEYS, KEYS), "purges: {purges}");
        }
    }
}

/// An evicted entry leaves no message, and the entries behind it still arrive.
#[tokio::test]
async fn watch_continues_behind_evicted_or_purged_messages() {
    const KEYS: u64 = 9_000;
    const REMOVED: u64 = 50;
    let server = NatsServer::shared();
    let context = async_nats::jetstream::new(server.client().await);
    for evicts in [true, false] {
        let name = unique("evicted");
        let config = async_nats::jetstream::stream::Config {
            name: format!("KV_{name}"),
            subjects: vec![format!("$KV.{name}.>")],
            max_messages_per_subject: 2,
            max_messages: if evicts { i64::try_from(KEYS).unwrap() } else { -1 },
            discard: async_nats::jetstream::stream::DiscardPolicy::Old,
            allow_rollup: true,
            allow_direct: true,
            ..Default::default()
        };
        let stream = context.create_stream(config).await.unwrap();
        let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
        fill(&store, usize::try_from(KEYS).unwrap()).await;
        let mut watch = store.watch(WatchScope::All).await.unwrap();
        let scan = store.scan(WatchScope::All);
        next(&mut watch).await.unwrap();
        scan.next().await.unwrap().unwrap();
        let gone = KEYS - 600..KEYS - 600 + REMOVED;
        let mut expected: BTreeSet<_> =
            (1..KEYS).map(|number| format!("key.{number:05}")).collect();
        if evicts {
            // All of them are evicted, the last one included.
            let others = (0..KEYS).map(|number| (format!("other.{number:05}"), "value"));
            assert!(store.put_many(others).await.iter().all(Result::is_ok));
            expected = (0..KEYS).map(|number| format!("other.{number:05}")).collect();
        } else {
            for number in gone {
                let key = format!("key.{number:05}");
                stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
                expected.remove(&key);
            }
        }
        let mut state = state(&mut watch).await;
        if evicts {
            // They were written after the watch began.
            while !expected.iter().all(|key| state.contains_key(key)) {
                let entry = next(&mut watch).await.unwrap().into_entry().unwrap();
                state.insert(entry.key.to_string(), entry.version);
            }
        }
        let missing = expected.iter().filter(|key| !state.contains_key(*key)).count();
        assert_eq!(missing, 0, "evicts: {evicts}");
        // The entry arrives promptly. A consumer that had to step over each removed message would
        // need as many wake-ups.
        let late = store.put("late", "value").await.unwrap();
        let update = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        assert_eq!(update.expect("in time").unwrap().unwrap().into_entry().unwrap().version, late);
        let rest: Vec<_> = scan.try_collect().await.unwrap();
        let listed: BTreeSet<_> = rest.iter().map(|entry| entry.key.to_string()).collect();
        assert_eq!(listed.len(), rest.len());
        // None of the evicted keys is live throughout.
        let missing = expected.iter().filter(|key| !evicts && !listed.contains(*key)).count();
        assert_eq!(missing, 0);
    }
}

/// A paused consumer sends heartbeats and delivers nothing, like one that has lost count.
#[tokio::test]
async fn consumer_that_is_idle_within_the_state_is_replaced() {
    for history in [1, 2] {
        let (server, store) = with_history(history).await;
        if !server.is_at_least(2, 11) {
            println!("consumers cannot be paused on nats-server {}", server.version());
            return;
        }
        store.put("key", "value").await.unwrap();
        let mut watch = store.watch(WatchScope::All).await.unwrap();
        pause_consumer(server, store.name()).await;
        assert_eq!(state(&mut watch).await.len(), 1, "history {history}");
    }
}

/// A watch, and the entries that it must have delivered by its marker.
struct Reader {
    watch: Watch,
    at_start: BTreeMap<String, VersionToken>,
    seen: BTreeMap<String, VersionToken>,
    caught_up: bool,
}

impl Reader {
    fn take(&mut self, update: KvUpdate) {
        if update == KvUpdate::CaughtUp {
            assert!(!std::mem::replace(&mut self.caught_up, true), "a second marker");
            for (key, version) in &self.at_start {
                let is_there =
                    self.seen.get(key).is_some_and(|seen| seen.as_u64() >= version.as_u64());
                assert!(is_there, "{key} is missing or old at the marker");
            }
            return;
        }
        let entry = update.into_entry().unwrap();
        let before = self.seen.insert(entry.key.to_string(), entry.version);
        assert!(
            before.is_none_or(|before| before.as_u64() < entry.version.as_u64()),
            "{} goes back",
            entry.key
        );
    }
}

/// Writers, purges and a slow reader act at random, with several histories. At the caught-up marker
/// every initial key has been delivered, at least as new as it was. The last version of every key
/// arrives. A scan has every key that is live throughout, once.
#[tokio::test]
async fn state_and_tail_are_complete_under_random_writes() {
    let given = std::env::var("SHIZUKU_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}");
    let mut random = Random::from_seed(seed);
    for (history, by_name) in
        [1, 2, 5, 64].into_iter().flat_map(|history| [(history, false), (history, true)])
    {
        let (_, store) = with_history(history).await;
        // Few keys are read by name, and all others from a consumer.
        let number = if by_name { 48 } else { 120 };
        let keys: Vec<_> = (0..number).map(|number| format!("key.{number:03}")).collect();
        let value = "v".repeat(200);
        let mut newest = BTreeMap::new();
        for _ in 0..2 {
            let answers =
                store.put_many(keys.iter().map(|key| (key.as_str(), value.clone()))).await;
            newest.extend(keys.iter().cloned().zip(answers.into_iter().map(Result::unwrap)));
        }
        let scope = if by_name { WatchScope::keys(&keys).unwrap() } else { WatchScope::All };
        let watch = store.watch(scope.clone()).await.unwrap();
        let mut reader =
            Reader { watch, at_start: newest.clone(), seen: BTreeMap::new(), caught_up: false };
        let scan = store.scan(scope);
        let (mut listed, mut purged) = (Vec::new(), BTreeSet::new());
        for _ in 0..60 {
            // Some keys are written more often than others.
            let key = &keys[random.index(keys.len()).min(random.index(keys.len()))];
            for _ in 0..random.index(4) {
                newest.insert(key.clone(), store.put(key, "new").await.unwrap());
            }
            if random.index(10) == 0 {
                store.purge(key).await.unwrap();
                purged.insert(key.clone());
                newest.insert(key.clone(), store.put(key, "again").await.unwrap());
            }
            for _ in 0..random.index(5) {
                let patience = Duration::from_millis(2);
                if let Ok(update) = tokio::time::timeout(patience, reader.watch.next()).await {
                    reader.take(update.unwrap().unwrap());
                }
            }
            if random.index(2) == 0
                && let Some(entry) = scan.next().await
            {
                listed.push(entry.unwrap().key.to_string());
            }
        }
        while !reader.caught_up || reader.seen != newest {
            let update = next(&mut reader.watch).await.unwrap();
            reader.take(update);
        }
        let rest: Vec<_> = scan.try_collect().await.unwrap();
        listed.extend(rest.into_iter().map(|entry| entry.key.to_string()));
        let distinct: BTreeSet<_> = listed.iter().collect();
        assert_eq!(distinct.len(), listed.len(), "history {history}: a key came twice");
        let missing: Vec<_> =
            keys.iter().filter(|key| !distinct.contains(key) && !purged.contains(*key)).collect();
        assert!(missing.is_empty(), "history {history}: {missing:?} are missing from the scan");
    }
}

/// The leader always has a newer message, and no consumer delivers all messages that waited for it.
#[tokio::test]
async fn state_ends_while_others_write_without_a_pause() {
    for history in [1, 2] {
        let (server, store) = with_history(history).await;
        fill(&store, 500).await;
        store.put("hot", "value").await.unwrap();
        let other = connect(&server.url()).await.unwrap().store(store.name()).await.unwrap();
        let writes = async {
            loop {
                let items = (0..20).map(|number| ("hot", number.to_string()));
                assert!(other.put_many(items).await.iter().all(Result::is_ok));
            }
        };
        let reads = async {
            for _ in 0..5 {
                let mut watch = store.watch(WatchScope::All).await.unwrap();
                assert_eq!(state(&mut watch).await.len(), 501);
                let mut watch = store.watch(WatchScope::key("hot").unwrap()).await.unwrap();
                assert_eq!(state(&mut watch).await.len(), 1);
                assert_eq!(store.scan(WatchScope::All).try_collect().await.unwrap().len(), 501);
                assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap().len(), 501);
            }
            if history == 1 {
                // A watch that has just caught up continues.
                let mut watch = store.watch(WatchScope::All).await.unwrap();
                state(&mut watch).await;
                let cursor = watch.cursor().unwrap();
                let mut watch = store.watch_from(WatchScope::All, cursor).await.unwrap();
                assert!(state(&mut watch).await.contains_key("hot"));
            }
        };
        tokio::select! {
            () = writes => {}
            () = reads => {}
        }
    }
}
