//! Puts and gets in each mode, and the cost of each mode next to `exclusive`.

use std::sync::Arc;

use redb::ConcurrencyMode;
use shizuku_kv::prelude::*;

use crate::hand_over::Threads;
use crate::others::{Redb, Sqlite};
use crate::ours::{Limits, Ours, key};
use crate::support::{Comparison, Unit, per_item};
use crate::{Effort, VALUE};

/// Number of keys that puts and gets use.
const KEYS: u64 = 10_000;

/// Maximum ratios to redb.
const PUT: f64 = 1.15;
const GET: f64 = 1.3;

/// Maximum ratio of the time of a put by 64 writers to that by one: 1/15.
const TOGETHER: f64 = 0.0667;

/// For a case without a target.
const NONE: f64 = f64::INFINITY;

const MODES: [(&str, &str, ConcurrencyMode); 3] = [
    ("exclusive", "?exclusive=true", ConcurrencyMode::ExclusiveWriter),
    ("default", "", ConcurrencyMode::SingleWriter),
    ("shared", "?shared=true", ConcurrencyMode::MultiWriter),
];

pub(crate) async fn measure(effort: Effort) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::create(&folder.path().join("sqlite"), KEYS);
    sqlite.put(KEYS);
    let (mut lines, mut modes) = (Vec::new(), Vec::new());
    for (name, options, mode) in MODES {
        let ours = Arc::new(Ours::create(options, KEYS).await);
        ours.fill(KEYS).await;
        Limits::sample().write_to_anyway(&ours.store).await.unwrap();
        let redb = |suffix: &str, is_two_phase| {
            let path = folder.path().join(format!("{name}{suffix}"));
            let redb = Redb::create(&path, mode, is_two_phase, KEYS);
            redb.put(KEYS, &VALUE);
            Arc::new(redb)
        };
        let one_phase = redb("", false);
        one_phase.insert("config.limits", &serde_json::to_vec(&Limits::sample()).unwrap());
        let target = if name == "exclusive" { NONE } else { PUT };
        lines.push(puts(effort, &ours, &one_phase, &format!("{name}; redb"), target).await);
        if name == "exclusive" {
            // The limit of this mode: a commit of this library has two phases (ADR 0110).
            let two_phases = redb("-two", true);
            let case = "exclusive; redb with two phases";
            lines.push(puts(effort, &ours, &two_phases, case, PUT).await);
        }
        lines.extend(gets(effort, &ours, &one_phase, name).await);
        lines.extend(together(effort, &ours, name).await);
        modes.push((name, ours));
    }
    if let [exclusive, default, shared] = &modes[..] {
        lines.extend(beside_sqlite(effort, &default.1, &sqlite).await);
        for (name, ours) in [exclusive, default, shared] {
            lines.extend(costs(effort, ours, &exclusive.1, name).await);
        }
    }
    for (_, ours) in modes {
        ours.connection.shutdown().await.unwrap();
    }
    lines
}

async fn puts(effort: Effort, ours: &Ours, redb: &Redb, case: &str, target: f64) -> String {
    let put = || async { redb.put(1, &VALUE) };
    let same = Comparison::singles(effort.puts, put, put).await;
    let puts = Comparison::singles(effort.puts, || ours.put(), put).await;
    puts.line_beside(&same, &format!("one durable put, {case}"), Unit::Each, target)
}

async fn gets(effort: Effort, ours: &Ours, redb: &Arc<Redb>, name: &str) -> Vec<String> {
    let get = || async { assert_eq!(redb.get(&key(7)).len(), VALUE.len()) };
    let same = Comparison::singles(effort.gets, get, get).await;
    let gets = Comparison::singles(effort.gets, || ours.get(7), get).await;
    let mut lines = vec![gets.line_beside(&same, &format!("get, {name}; redb"), Unit::Each, GET)];
    let decode = || async {
        let limits: Limits = serde_json::from_slice(&redb.get("config.limits")).unwrap();
        assert_eq!(limits.connections, 5);
    };
    let same = Comparison::singles(effort.gets, decode, decode).await;
    let gets = Comparison::singles(effort.gets, || ours.typed_get(), decode).await;
    let case = format!("typed get, {name}; redb and serde_json");
    lines.push(gets.line_beside(&same, &case, Unit::Each, GET));
    if name == "shared" {
        // The limits of a read that may block: it runs on a thread of the database.
        let threads = Threads::start();
        let nothing = || threads.run(|| ());
        let same = Comparison::singles(effort.gets, nothing, nothing).await;
        let gets = Comparison::singles(effort.gets, || ours.get(7), nothing).await;
        let case = "get, shared; a change of threads and back";
        lines.push(gets.line_beside(&same, case, Unit::Each, NONE));
        let get = || {
            let redb = Arc::clone(redb);
            threads.run(move || assert_eq!(redb.get(&key(7)).len(), VALUE.len()))
        };
        let same = Comparison::singles(effort.gets, get, get).await;
        let gets = Comparison::singles(effort.gets, || ours.get(7), get).await;
        let case = "get, shared; redb on another thread";
        lines.push(gets.line_beside(&same, case, Unit::Each, NONE));
    }
    lines
}

/// Many tasks at once, next to one task.
async fn together(effort: Effort, ours: &Arc<Ours>, name: &str) -> Vec<String> {
    let count = effort.puts.1.max(64) * 32;
    let all = Comparison::run(
        effort.rounds,
        || per_item(count, ours.put_by_64(count)),
        || per_item(effort.puts.1, one_by_one(effort.puts.1, ours)),
    );
    let case = format!("64 writers, {name}; one writer");
    vec![all.await.line(&case, Unit::Item, TOGETHER)]
}

async fn one_by_one(count: usize, ours: &Ours) {
    for _ in 0..count {
        ours.put().await;
    }
}

async fn beside_sqlite(effort: Effort, ours: &Arc<Ours>, sqlite: &Sqlite) -> Vec<String> {
    let put = || async { sqlite.put(1) };
    let same = Comparison::singles(effort.puts, put, put).await;
    let puts = Comparison::singles(effort.puts, || ours.put(), put).await;
    let mut lines =
        vec![puts.line_beside(&same, "one durable put, default; SQLite", Unit::Each, NONE)];
    let get = || async { assert_eq!(sqlite.get(7).len(), VALUE.len()) };
    let same = Comparison::singles(effort.gets, get, get).await;
    let gets = Comparison::singles(effort.gets, || ours.get(7), get).await;
    lines.push(gets.line_beside(&same, "get, default; SQLite", Unit::Each, NONE));
    // With one connection, writers take turns.
    let (count, serial) = (effort.puts.1.max(64) * 32, effort.puts.1);
    let together = Comparison::run(
        effort.rounds,
        || per_item(count, ours.put_by_64(count)),
        || per_item(serial, async { (0..serial).for_each(|_| sqlite.put(1)) }),
    );
    let case = "64 writers, default; SQLite with one connection";
    lines.push(together.await.line(case, Unit::Item, NONE));
    lines
}

/// Compares a mode with `exclusive`. The comparison of `exclusive` with itself shows the noise.
async fn costs(effort: Effort, ours: &Arc<Ours>, exclusive: &Arc<Ours>, name: &str) -> [String; 4] {
    let case = |what: &str| format!("{what}, {name}; exclusive");
    let puts = Comparison::singles(effort.puts, || ours.put(), || exclusive.put()).await;
    let gets = Comparison::singles(effort.gets, || ours.get(7), || exclusive.get(7)).await;
    let count = effort.puts.1.max(64) * 32;
    let together = Comparison::run(
        effort.rounds,
        || per_item(count, ours.put_by_64(count)),
        || per_item(count, exclusive.put_by_64(count)),
    );
    let together = together.await;
    let keys = usize::try_from(KEYS).unwrap();
    let scans = Comparison::run(
        effort.rounds,
        || per_item(keys, async { assert!(ours.scan().await >= keys) }),
        || per_item(keys, async { assert!(exclusive.scan().await >= keys) }),
    );
    let scans = scans.await;
    [
        puts.line(&case("one durable put"), Unit::Each, NONE),
        gets.line(&case("get"), Unit::Each, NONE),
        together.line(&case("64 writers"), Unit::Item, NONE),
        scans.line(&case("scan"), Unit::Item, NONE),
    ]
}
