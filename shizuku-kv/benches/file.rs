//! Stores in a folder next to plain redb, in the same mode, with the same tables and values.
//!
//! `cargo bench -p shizuku-kv --features file --bench file`, with `-- --quick` for a short run and
//! `-- --keys N` for another size. Each comparison alternates between both sides. Its last ratio is
//! that of redb with itself, which shows the noise.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark reports by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{Builder, ConcurrencyMode, Database, ReadableDatabase, TableDefinition};
use shizuku_kv::{Connection, Store, WatchScope, connect};

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Tables that a put changes: state, log, position.
const TABLES: [Definition; 3] =
    [TableDefinition::new("state"), TableDefinition::new("log"), TableDefinition::new("position")];

const KEYS: u64 = 10_000;
const VALUE: [u8; 200] = [7; 200];

fn key(number: u64) -> String {
    format!("config.key.{:08}", number % KEYS)
}

/// Does what a put does, with redb alone.
fn put(database: &Database, number: u64) {
    let transaction = database.begin_write().unwrap();
    let key = key(number);
    {
        transaction.open_table(TABLES[0]).unwrap().insert(key.as_bytes(), &VALUE[..]).unwrap();
        let mut log = transaction.open_table(TABLES[1]).unwrap();
        log.insert(number.to_be_bytes().as_slice(), key.as_bytes()).unwrap();
        if let Some(superseded) = number.checked_sub(KEYS) {
            log.remove(superseded.to_be_bytes().as_slice()).unwrap();
        }
        let mut position = transaction.open_table(TABLES[2]).unwrap();
        position.insert(&[0][..], number.to_be_bytes().as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

fn get(database: &Database, number: u64) {
    let transaction = database.begin_read().unwrap();
    let table = transaction.open_table(TABLES[0]).unwrap();
    assert!(table.get(key(number).as_bytes()).unwrap().is_some());
}

fn plain(path: &Path, mode: ConcurrencyMode) -> Database {
    let mut builder = Builder::new();
    builder.set_concurrency_mode(mode).set_cache_size(64 * 1024 * 1024);
    builder.create(path).unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn row(what: &str, ours: Duration, theirs: Duration, again: Duration) {
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    println!(
        "  {what:<28} {ours:>10.1?}  redb {theirs:>10.1?}  ratio {:.2}  A/A {:.2}",
        ratio(ours, theirs),
        ratio(again, theirs)
    );
}

async fn mode(name: &str, options: &str, mode: ConcurrencyMode, rounds: u64) {
    println!("{name}");
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file:{}/data{options}", folder.path().display());
    let connection = connect(&url).await.unwrap();
    let store = connection.store("config").await.unwrap();
    let database = plain(&folder.path().join("plain.redb"), mode);
    let (mut ours, mut theirs, mut again) = (Vec::new(), Vec::new(), Vec::new());
    let (mut number, mut plain_number) = (0, 0);
    for _ in 0..rounds {
        let began = Instant::now();
        store.put(key(number), VALUE.to_vec()).await.unwrap();
        ours.push(began.elapsed());
        for times in [&mut theirs, &mut again] {
            let began = Instant::now();
            put(&database, plain_number);
            times.push(began.elapsed());
            plain_number += 1;
        }
        number += 1;
    }
    let alone = median(ours.clone());
    row("one durable put, p50", alone, median(theirs), median(again));

    let (mut ours, mut theirs, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds * 10 {
        let began = Instant::now();
        assert!(store.get(key(round % rounds)).await.unwrap().is_some());
        ours.push(began.elapsed());
        for times in [&mut theirs, &mut again] {
            let began = Instant::now();
            get(&database, round % rounds);
            times.push(began.elapsed());
        }
    }
    row("one get, p50", median(ours), median(theirs), median(again));

    let writers = 64;
    let began = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..rounds / 8 {
                    let number = writer * 1000 + round;
                    store.put(key(number), VALUE.to_vec()).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let rate = (writers * (rounds / 8)) as f64 / began.elapsed().as_secs_f64();
    let single = 1.0 / alone.as_secs_f64();
    println!("  64 writers: {rate:.0} puts/s, {:.1} times one writer", rate / single);

    let began = Instant::now();
    let reads: Vec<_> = (0..writers)
        .map(|reader| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..rounds {
                    store.get(key((reader + round) % rounds)).await.unwrap();
                }
            })
        })
        .collect();
    for read in reads {
        read.await.unwrap();
    }
    println!(
        "  64 readers: {:.0} gets/s",
        (writers * rounds) as f64 / began.elapsed().as_secs_f64()
    );
    connection.shutdown().await.unwrap();
}

async fn fill(store: &Store, keys: u64) -> Duration {
    let began = Instant::now();
    let mut number = 0;
    while number < keys {
        let end = (number + 4096).min(keys);
        let items = (number..end).map(|number| (format!("config.key.{number:08}"), VALUE.to_vec()));
        for written in store.put_many(items).await {
            written.unwrap();
        }
        number = end;
    }
    began.elapsed()
}

async fn size(keys: u64) {
    println!("{keys} keys of 200 B, exclusive");
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file:{}/data?exclusive=true", folder.path().display());
    let payload = keys * (19 + 200);
    let file = folder.path().join("data/shizuku.redb");
    let connection: Arc<dyn Connection> = connect(&url).await.unwrap();
    let store = connection.store("config").await.unwrap();
    for what in ["written", "overwritten"] {
        let took = fill(&store, keys).await;
        let len = fs::metadata(&file).unwrap().len();
        let rate = keys as f64 / took.as_secs_f64();
        println!(
            "  {what}: {rate:.0} puts/s, file {} MB, {:.2} of the payload",
            len / 1_000_000,
            len as f64 / payload as f64
        );
    }
    connection.shutdown().await.unwrap();
    let len = fs::metadata(&file).unwrap().len();
    println!(
        "  closed: file {} MB, {:.2} of the payload",
        len / 1_000_000,
        len as f64 / payload as f64
    );
    let began = Instant::now();
    let connection = connect(&url).await.unwrap();
    let store = connection.store("config").await.unwrap();
    println!("  open: {:.1?}", began.elapsed());
    let began = Instant::now();
    let entries = store.scan(WatchScope::All);
    let mut count = 0;
    while let Some(entry) = entries.next().await {
        entry.unwrap();
        count += 1;
    }
    println!("  scan: {:.0} entries/s", count as f64 / began.elapsed().as_secs_f64());
    let began = Instant::now();
    let watch = store.watch(WatchScope::All).await.unwrap();
    let mut count = 0;
    while watch.next().await.unwrap().unwrap().into_entry().is_some() {
        count += 1;
    }
    println!(
        "  initial state of a watch: {:.0} entries/s",
        count as f64 / began.elapsed().as_secs_f64()
    );
    connection.shutdown().await.unwrap();
}

/// Environment variable of the process that writes for [`latency`].
const WRITER: &str = "SHIZUKU_FILE_BENCH_WRITER";

fn nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// Writes the time, again and again, and prints the duration of each put.
async fn write_the_time(url: &str) {
    let store = connect(url).await.unwrap().store("config").await.unwrap();
    for _ in 0..500 {
        let began = Instant::now();
        store.put("time", nanos().to_string()).await.unwrap();
        println!("{}", began.elapsed().as_nanos());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Time from the begin of a put to its arrival at a watch of another process.
async fn latency(what: &str, writer: &str, reader: &str) {
    let folder = tempfile::tempdir().unwrap();
    let url = |options: &str| format!("file:{}/data{options}", folder.path().display());
    // Creates the store, which a reader cannot do.
    let connection = connect(&url(writer)).await.unwrap();
    connection.store("config").await.unwrap().put("time", nanos().to_string()).await.unwrap();
    connection.shutdown().await.unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .env(WRITER, url(writer))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let store = connect(&url(reader)).await.unwrap().store("config").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    let mut times = Vec::new();
    while times.len() < 400 {
        if let Some(entry) = watch.next().await.unwrap().unwrap().into_entry() {
            let began: u64 = String::from_utf8(entry.value.to_vec()).unwrap().parse().unwrap();
            times.push(Duration::from_nanos(nanos().saturating_sub(began)));
        }
    }
    times.remove(0);
    let output = child.wait_with_output().unwrap();
    let puts = String::from_utf8(output.stdout).unwrap();
    let puts = puts.lines().map(|line| Duration::from_nanos(line.parse().unwrap())).collect();
    times.sort_unstable();
    println!(
        "{what}: put to watch of another process p50 {:.1?}, p99 {:.1?}; a put p50 {:.1?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        median(puts)
    );
}

#[tokio::main]
async fn main() {
    if let Ok(url) = std::env::var(WRITER) {
        return write_the_time(&url).await;
    }
    let mut arguments = std::env::args().skip(1);
    let (mut rounds, mut keys) = (2000, 1_000_000);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (rounds, keys) = (200, 100_000),
            "--keys" => keys = arguments.next().unwrap().parse().unwrap(),
            _ => {}
        }
    }
    mode("exclusive", "?exclusive=true", ConcurrencyMode::ExclusiveWriter, rounds).await;
    mode("default", "", ConcurrencyMode::SingleWriter, rounds).await;
    mode("shared", "?shared=true", ConcurrencyMode::MultiWriter, rounds).await;
    latency("default", "", "?read_only=true").await;
    latency("shared", "?shared=true", "?shared=true").await;
    size(keys).await;
}
