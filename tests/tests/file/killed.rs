//! Processes that are killed while they open a folder, repair it and write to it: no acknowledged
//! write is lost, nothing is half written, no version is assigned twice, and cursors stay valid.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::{
    Connection, KvEntry, KvUpdate, Store, StoreConfig, Watch, WatchCursor, WatchScope, connect,
};
use shizuku_kv_tests::{PATIENCE, Random, is_long, seed};
use tempfile::tempdir;

use crate::process::{PAIR, Process, STORE, content};

/// Difference between the first numbers of two processes, more than a process writes.
const NUMBERS: u64 = 1_000_000;

/// Maximum time after its start at which a process is killed while it may be opening the folder.
const OPENING: Duration = Duration::from_millis(60);

fn rounds() -> u64 {
    if is_long() { 200 } else { 8 }
}

/// Everything that is known of the writes.
#[derive(Default)]
struct Ledger {
    /// The last acknowledged number of each key, with its version.
    acknowledged: BTreeMap<String, (u64, u64)>,
    /// The key and the number of each version that was seen.
    versions: BTreeMap<u64, (String, u64)>,
    /// The highest version before the present process has begun to write.
    floor: u64,
    processes: u64,
}

impl Ledger {
    /// Notes that the next process begins to write, and returns its first number.
    fn begin(&mut self) -> u64 {
        self.floor = self.versions.last_key_value().map_or(0, |(version, _)| *version);
        self.processes += 1;
        self.processes * NUMBERS
    }

    /// Notes an answer of a process that writes on.
    fn note(&mut self, answer: &str) {
        let words: Vec<&str> = answer.split(' ').collect();
        let [key, number, version] = words.as_slice() else { panic!("{answer}") };
        self.acknowledge(key, number.parse().unwrap(), version.parse().unwrap());
        let (floor, version) = (self.floor, self.acknowledged[*key].1);
        assert!(version > floor, "version {version} was assigned after {floor} was seen");
    }

    fn acknowledge(&mut self, key: &str, number: u64, version: u64) {
        self.see(version, key, number);
        self.acknowledged.insert(key.to_owned(), (number, version));
    }

    /// Notes a version, which must be that of this write always.
    fn see(&mut self, version: u64, key: &str, number: u64) {
        let found = (key.to_owned(), number);
        let known = self.versions.entry(version).or_insert_with(|| found.clone());
        assert_eq!(known, &found, "version {version} was given twice");
    }

    /// Notes an entry, whose value must be whole, and returns its number and its version.
    fn see_entry(&mut self, entry: &KvEntry) -> (u64, u64) {
        let (key, version) = (&entry.key, entry.version.as_u64().unwrap());
        let value = std::str::from_utf8(&entry.value).unwrap();
        let number = value.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(value, content(number), "{key} is half written");
        self.see(version, key, number);
        (number, version)
    }

    /// Checks that the store has every acknowledged write, or a later one of its key, that pairs
    /// were written together, and that a watch has delivered the newest entry of every key.
    async fn check(&mut self, store: &Store, delivered: &BTreeMap<String, u64>) {
        let entries = store.scan(WatchScope::All).try_collect().await.unwrap();
        let mut found = BTreeMap::new();
        for entry in &entries {
            found.insert(entry.key.to_string(), self.see_entry(entry));
        }
        for (key, (number, version)) in &self.acknowledged {
            let (found, at) = found[key];
            assert!(at >= *version, "{key} is at {at} and was acknowledged at {version}");
            assert!(found >= *number, "{key} is {found} and was acknowledged as {number}");
        }
        for (left, (number, _)) in &found {
            if let Some(pair) = left.strip_suffix(PAIR[0]) {
                let right = found.get(&format!("{pair}{}", PAIR[1])).map(|(number, _)| *number);
                assert_eq!(right, Some(*number), "{left} was written without the other");
            }
        }
        let newest: BTreeMap<_, _> =
            found.into_iter().map(|(key, (_, version))| (key, version)).collect();
        assert_eq!(*delivered, newest, "the watch has not delivered the newest entries");
    }
}

/// Kills a process that may be opening the folder, or repairing it. Then lets another one write,
/// and kills it at a random moment.
fn write_and_kill(url: &str, prefix: &str, random: &mut Random, ledger: &mut Ledger) {
    if random.once_in(2) {
        let mut process = Process::begin(url);
        let most = u64::try_from(OPENING.as_micros()).unwrap();
        std::thread::sleep(Duration::from_micros(random.below(most)));
        process.kill();
    }
    let mut process = Process::ready(url);
    process.send(&format!("write_on {prefix} {}", ledger.begin()));
    for _ in 0..random.below(60) {
        ledger.note(&process.answer().unwrap());
    }
    process.kill();
    // The answers of writes that were acknowledged before. The last may be cut off.
    while let Some(answer) = process.answer() {
        ledger.note(&answer);
    }
}

/// Reads a watch up to the caught-up marker, or to a version, and checks the order of each key.
async fn read_on(
    watch: &Watch,
    last: &mut BTreeMap<String, u64>,
    ledger: &mut Ledger,
    until: Option<u64>,
) -> WatchCursor {
    loop {
        let update = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
        let KvUpdate::Put(entry) = update.unwrap().unwrap() else {
            return watch.cursor().unwrap();
        };
        let (_, version) = ledger.see_entry(&entry);
        let before = last.insert(entry.key.to_string(), version);
        assert!(before < Some(version), "{} was delivered at {before:?} before", entry.key);
        if Some(version) == until {
            return watch.cursor().unwrap();
        }
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
        if round == 0 {
            // Never written again, so that no cursor precedes the oldest entry.
            store.put("anchor", content(0)).await.unwrap();
        }
        let watch = match cursor {
            Some(cursor) => store.watch_from(WatchScope::All, cursor).await.unwrap(),
            None => store.watch(WatchScope::All).await.unwrap(),
        };
        cursor = Some(read_on(&watch, &mut last, &mut ledger, None).await);
        ledger.check(&store, &last).await;
        drop(watch);
        connection.shutdown().await.unwrap();
    }
    let versions = ledger.versions.len();
    println!("{} processes were killed after {versions} writes were seen", ledger.processes);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_shared_writer_disturbs_no_other_process() {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data?shared=true", folder.path().display());
    let (mut random, mut ledger) = (Random::new(seed(), "kills"), Ledger::default());
    let (connection, store) = open(&url).await;
    store.put("anchor", content(0)).await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    let mut last = BTreeMap::new();
    let mut cursor = read_on(&watch, &mut last, &mut ledger, None).await;
    let (mut ours, mut reached) = (0, last.clone());
    for _ in 0..rounds() {
        let (ended, mut is_ended) = tokio::sync::watch::channel(false);
        let writes = {
            let store = store.clone();
            tokio::spawn(async move {
                let mut versions = Vec::new();
                while !*is_ended.borrow_and_update() {
                    ours += 1;
                    let version = store.put("ours.key", content(ours)).await.unwrap();
                    versions.push((ours, version.as_u64().unwrap()));
                }
                versions
            })
        };
        let (mut work, theirs) = ((random, ledger), url.clone());
        work = tokio::task::spawn_blocking(move || {
            write_and_kill(&theirs, "theirs", &mut work.0, &mut work.1);
            work
        })
        .await
        .unwrap();
        (random, ledger) = work;
        ended.send_replace(true);
        for (number, version) in writes.await.unwrap() {
            ledger.acknowledge("ours.key", number, version);
            ours = number;
        }
        // The watch has run throughout, and is read up to a mark.
        ours += 1;
        let mark = store.put("mark", content(ours)).await.unwrap().as_u64().unwrap();
        read_on(&watch, &mut last, &mut ledger, Some(mark)).await;
        ledger.check(&store, &last).await;
        // Another connection resumes the cursor of an earlier round.
        let (other, again) = open(&url).await;
        let resumed = again.watch_from(WatchScope::All, cursor).await.unwrap();
        cursor = read_on(&resumed, &mut reached, &mut ledger, None).await;
        assert_eq!(reached, last);
        drop(resumed);
        other.shutdown().await.unwrap();
    }
    connection.shutdown().await.unwrap();
    let versions = ledger.versions.len();
    println!("{} processes were killed after {versions} writes were seen", ledger.processes);
}
