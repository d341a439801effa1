//! Processes that are killed while they write: no acknowledged write is lost, nothing is half
//! written, no version is given twice, and cursors stay valid.

use std::collections::BTreeMap;
use std::sync::Arc;

use shizuku_kv::{
    Connection, KvUpdate, Store, StoreConfig, Watch, WatchCursor, WatchScope, connect,
};
use shizuku_kv_tests::{PATIENCE, Random, is_long, seed};
use tempfile::tempdir;

use crate::process::{Process, STORE};

fn rounds() -> u64 {
    if is_long() { 200 } else { 8 }
}

/// Everything that is known of the writes.
#[derive(Default)]
struct Ledger {
    /// The last acknowledged number of each key, with its version.
    acknowledged: BTreeMap<String, (u64, u64)>,
    /// The key and the value of each version that was seen.
    versions: BTreeMap<u64, (String, String)>,
}

impl Ledger {
    /// Notes an answer of a process that writes on.
    fn note(&mut self, answer: &str) {
        let words: Vec<&str> = answer.split(' ').collect();
        let [key, number, version] = words.as_slice() else { panic!("{answer}") };
        let (number, version): (u64, u64) = (number.parse().unwrap(), version.parse().unwrap());
        self.see(version, key, &number.to_string());
        self.acknowledged.insert((*key).to_owned(), (number, version));
    }

    /// Notes a version, which must be that of this value always.
    fn see(&mut self, version: u64, key: &str, value: &str) {
        let found = (key.to_owned(), value.to_owned());
        let known = self.versions.entry(version).or_insert_with(|| found.clone());
        assert_eq!(known, &found, "version {version} was given twice");
    }

    /// Checks that the store has every acknowledged write, or a later one of its key.
    async fn check(&mut self, store: &Store) {
        for (key, (number, version)) in self.acknowledged.clone() {
            let entry = store.get(key.as_str()).await.unwrap().expect("an acknowledged write");
            let value = String::from_utf8(entry.value.to_vec()).unwrap();
            let found = entry.version.as_u64().unwrap();
            assert!(found >= version, "{key} is at {found} and was acknowledged at {version}");
            let found_number: u64 = value.parse().unwrap();
            assert!(found_number >= number, "{key} is {value} and was acknowledged as {number}");
            self.see(found, &key, &value);
        }
    }
}

/// Writes in a process of its own, and kills it at a random moment.
fn write_and_kill(url: &str, prefix: &str, random: &mut Random, ledger: &mut Ledger) {
    let mut process = Process::ready(url);
    process.send(&format!("write_on {prefix}"));
    for _ in 0..random.below(60) {
        ledger.note(&process.answer().unwrap());
    }
    process.kill();
    // The answers of writes that were acknowledged before.
    while let Some(answer) = process.answer() {
        ledger.note(&answer);
    }
}

/// Reads a watch to its end, checks the order of each key, and returns the last cursor.
async fn read_to_the_marker(
    watch: &Watch,
    last: &mut BTreeMap<String, u64>,
    ledger: &mut Ledger,
) -> WatchCursor {
    loop {
        let update = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
        let KvUpdate::Put(entry) = update.unwrap().unwrap() else {
            return watch.cursor().unwrap();
        };
        let version = entry.version.as_u64().unwrap();
        ledger.see(version, &entry.key, std::str::from_utf8(&entry.value).unwrap());
        let before = last.insert(entry.key.to_string(), version);
        assert!(before < Some(version), "{} was delivered at {before:?} before", entry.key);
    }
}

async fn open(url: &str) -> (Arc<dyn Connection>, Store) {
    let connection = connect(url).await.unwrap();
    let config = StoreConfig::new().key_ttl(true);
    let store = connection.store_with_config(STORE, config).await.unwrap();
    (connection, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_single_writer_loses_no_acknowledged_write() {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data", folder.path().display());
    let (mut random, mut ledger) = (Random::new(seed(), "kills"), Ledger::default());
    let (mut cursor, mut last) = (None, BTreeMap::new());
    for round in 0..rounds() {
        write_and_kill(&url, "a", &mut random, &mut ledger);
        // A reader and a writer each repair the file.
        let options = if round % 2 == 0 { "" } else { "?read_only=true" };
        let (connection, store) = open(&format!("{url}{options}")).await;
        ledger.check(&store).await;
        if round == 0 {
            // Never written again, so that no cursor precedes the oldest entry.
            store.put("anchor", "0").await.unwrap();
        }
        let watch = match cursor {
            Some(cursor) => store.watch_from(WatchScope::All, cursor).await.unwrap(),
            None => store.watch(WatchScope::All).await.unwrap(),
        };
        cursor = Some(read_to_the_marker(&watch, &mut last, &mut ledger).await);
        for (key, (_, version)) in &ledger.acknowledged {
            assert!(last[key] >= *version, "{key} was not delivered");
        }
        drop(watch);
        connection.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_shared_writer_disturbs_no_other_process() {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data?shared=true", folder.path().display());
    let (mut random, mut ledger) = (Random::new(seed(), "kills"), Ledger::default());
    let (connection, store) = open(&url).await;
    let watch = store.watch(WatchScope::All).await.unwrap();
    let mut last = BTreeMap::new();
    read_to_the_marker(&watch, &mut last, &mut ledger).await;
    for round in 0..rounds() {
        let writes = {
            let store = store.clone();
            tokio::spawn(async move {
                let mut versions = Vec::new();
                for number in 0..20 {
                    let value = (round * 20 + number).to_string();
                    let version = store.put("ours.key", value.clone()).await.unwrap();
                    versions.push((version.as_u64().unwrap(), value));
                }
                versions
            })
        };
        let url = url.clone();
        let mut work = (random, ledger);
        work = tokio::task::spawn_blocking(move || {
            write_and_kill(&url, "theirs", &mut work.0, &mut work.1);
            work
        })
        .await
        .unwrap();
        (random, ledger) = work;
        for (version, value) in writes.await.unwrap() {
            ledger.see(version, "ours.key", &value);
            ledger.acknowledged.insert("ours.key".to_owned(), (value.parse().unwrap(), version));
        }
        ledger.check(&store).await;
        // The watch has run throughout, and is read up to a mark.
        let mark = store.put("mark", round.to_string()).await.unwrap().as_u64().unwrap();
        while last.get("mark") != Some(&mark) {
            let update = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
            let entry = update.unwrap().unwrap().into_entry().unwrap();
            let version = entry.version.as_u64().unwrap();
            let value = String::from_utf8(entry.value.to_vec()).unwrap();
            ledger.see(version, &entry.key, &value);
            let before = last.insert(entry.key.to_string(), version);
            assert!(before < Some(version), "{} was delivered at {before:?}", entry.key);
        }
        for (key, (_, version)) in &ledger.acknowledged {
            assert!(last[key] >= *version, "{key} was not delivered");
        }
    }
    connection.shutdown().await.unwrap();
}
