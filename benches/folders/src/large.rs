//! A store of a million keys: the size of its file, its speed, and the memory of its process.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use redb::ConcurrencyMode;
use shizuku_kv::{WatchScope, connect};

use crate::others::{Redb, Sqlite};
use crate::ours::{Ours, key};
use crate::support::{Comparison, Unit, met, per_item};
use crate::{Effort, VALUE};

/// Keys of one transaction of redb and SQLite, as this library commits many puts.
const TOGETHER: u64 = 256;

/// Maximum size of the file, divided by that of keys and values.
const SIZE: f64 = 2.5;

/// Maximum time for opening the store, in milliseconds.
const OPEN: f64 = 100.0;

/// Environment variables of a process whose memory is measured: its work, and the URL.
const WORK: &str = "SHIZUKU_FOLDERS_WORK";
const URL: &str = "SHIZUKU_FOLDERS_URL";

fn line(case: &str, ours: f64, other: f64, unit: &str, target: f64) -> String {
    let ratio = ours / other;
    let (limit, verdict) = match target.is_finite() {
        true => (format!("<= {target}"), met(ratio <= target)),
        false => ("-".to_owned(), "-"),
    };
    let line =
        format!("{case} | {ours:.1} {unit} | {other:.1} {unit} | {ratio:.2} | {limit} | {verdict}");
    println!("measured: {line}");
    line
}

/// Returns the length of the files whose names begin with that of `file`, and their room on the
/// disk, in megabytes.
fn sizes(file: &Path) -> [f64; 2] {
    let name = file.file_name().unwrap().to_str().unwrap();
    let files = fs::read_dir(file.parent().unwrap()).unwrap().map(Result::unwrap);
    let found = files.filter(|found| found.file_name().to_str().unwrap().starts_with(name));
    found.map(|found| found.metadata().unwrap()).fold([0.0, 0.0], |[len, room], found| {
        let blocks = std::os::unix::fs::MetadataExt::blocks(&found);
        [len + found.len() as f64 / 1e6, room + (blocks * 512) as f64 / 1e6]
    })
}

pub(crate) async fn measure(effort: Effort) -> Vec<String> {
    let mut lines = Vec::new();
    let count = effort.keys as u64;
    let payload = (effort.keys * (key(0).len() + VALUE.len())) as f64 / 1e6;
    let others = tempfile::tempdir().unwrap();
    let mut size = |case: &str, file: &Path, is_ours: bool| {
        let [len, room] = sizes(file);
        let target = if is_ours { SIZE } else { f64::INFINITY };
        lines.push(line(&format!("{case}, room on disk; payload"), room, payload, "MB", target));
        lines.push(line(&format!("{case}, length; payload"), len, payload, "MB", f64::INFINITY));
    };
    let ours = Ours::create("?exclusive=true", count).await;
    let file = ours.folder.path().join("data/shizuku.redb");
    let mut rates = Vec::new();
    for what in ["written", "overwritten"] {
        let began = Instant::now();
        ours.fill(count).await;
        rates.push((what, count as f64 / began.elapsed().as_secs_f64() / 1000.0));
        size(&format!("{count} keys {what}"), &file, true);
    }
    ours.connection.shutdown().await.unwrap();
    size(&format!("{count} keys after shutdown"), &file, true);
    let redb =
        Redb::create(&others.path().join("redb"), ConcurrencyMode::ExclusiveWriter, true, count);
    for what in ["written", "overwritten"] {
        for _ in (0..count).step_by(usize::try_from(TOGETHER).unwrap()) {
            redb.put(TOGETHER, &VALUE);
        }
        size(&format!("{count} keys {what} with redb"), &others.path().join("redb"), false);
        println!("redb: {}", redb.stats());
    }
    let sqlite = Sqlite::create(&others.path().join("sqlite"), count);
    for what in ["written", "overwritten"] {
        for first in (0..count).step_by(usize::try_from(TOGETHER).unwrap()) {
            sqlite.put(TOGETHER.min(count - first));
        }
        size(&format!("{count} keys {what} with SQLite"), &others.path().join("sqlite"), false);
    }
    for (what, rate) in rates {
        println!("measured: {count} keys {what}: {rate:.0} k/s");
    }
    let url = format!("file:{}?exclusive=true", file.parent().unwrap().display());
    lines.extend(reads(effort, &url, &redb, &sqlite).await);
    lines.extend(memory(effort, &url));
    lines
}

async fn reads(effort: Effort, url: &str, redb: &Redb, sqlite: &Sqlite) -> Vec<String> {
    let began = Instant::now();
    let connection = connect(url).await.unwrap();
    let store = connection.store("config").await.unwrap();
    let open = began.elapsed().as_secs_f64() * 1000.0;
    let mut lines = vec![line("opened; target", open, OPEN, "ms", 1.0)];
    let scan = || {
        per_item(effort.keys, async {
            let entries = store.scan(WatchScope::All);
            let mut count = 0;
            while let Some(entry) = entries.next().await {
                entry.unwrap();
                count += 1;
            }
            assert_eq!(count, effort.keys);
        })
    };
    let of_redb = || per_item(effort.keys, async { assert!(redb.scan() >= effort.keys) });
    let of_sqlite = || per_item(effort.keys, async { assert_eq!(sqlite.scan(), effort.keys) });
    let watch = || {
        per_item(effort.keys, async {
            let watch = store.watch(WatchScope::All).await.unwrap();
            while watch.next().await.unwrap().unwrap().into_entry().is_some() {}
        })
    };
    let same = Comparison::run(effort.rounds, of_redb, of_redb).await;
    for (case, other) in [
        ("scan; redb", Comparison::run(effort.rounds, scan, of_redb).await),
        ("scan; SQLite", Comparison::run(effort.rounds, scan, of_sqlite).await),
        ("initial state of a watch; scan", Comparison::run(3, watch, scan).await),
    ] {
        lines.push(other.line_beside(&same, case, Unit::Item, f64::INFINITY));
    }
    connection.shutdown().await.unwrap();
    lines
}

/// Peak memory of processes that write and scan, next to one that opens an empty store.
fn memory(effort: Effort, url: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let peak = |work: &str, url: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.env(WORK, work).env(URL, url).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().parse::<f64>().unwrap() / 1024.0
    };
    let new = |name: &str| format!("file:{}?exclusive=true", folder.path().join(name).display());
    let (none, keys) = (peak("0", &new("none")), effort.keys);
    [
        ("peak memory while written", peak(&keys.to_string(), &new("written"))),
        ("peak memory of a scan", peak("scan", url)),
    ]
    .map(|(case, ours)| line(&format!("{case}; opened empty"), ours, none, "MiB", f64::INFINITY))
    .into()
}

/// Does the work of a measured process. Returns its peak memory in KiB.
pub(crate) async fn child() -> Option<String> {
    let (work, url) = (std::env::var(WORK).ok()?, std::env::var(URL).unwrap());
    if work == "scan" {
        let store = connect(&url).await.unwrap().store("config").await.unwrap();
        let entries = store.scan(WatchScope::All);
        while let Some(entry) = entries.next().await {
            entry.unwrap();
        }
    } else {
        let connection = connect(&url).await.unwrap();
        let store = connection.store("config").await.unwrap();
        let count: u64 = work.parse().unwrap();
        for first in (0..count).step_by(4096) {
            let some = first..count.min(first + 4096);
            let written = store.put_many(some.map(|number| (key(number), VALUE.to_vec()))).await;
            assert!(written.iter().all(Result::is_ok));
        }
        connection.shutdown().await.unwrap();
    }
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    Some(peak.trim_end_matches("kB").trim().to_owned())
}
