//! The peak memory of a replica. Each replica runs in a process of its own, whose peak the system
//! records.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use shizuku_kv::connect;
use shizuku_kv::snapshot::SnapshotOptions;
use slipstream::{BatchConfig, Connection as _};

use crate::buckets::{Bucket, Buckets, VALUE, key, slipstream_at};
use crate::lines::{Figure, line};
use crate::slipstreams::Settings;
use crate::turns::Times;
use crate::{Effort, ours, slipstreams};

/// First argument of a measured process.
pub(crate) const CHILD: &str = "child";

/// Maximum ratio to slipstream's memory.
const TARGET: f64 = 1.0;
/// Number of rounds. The data is the same each time, and only the allocator's behaviour varies.
const ROUNDS: usize = 3;

/// A side and its settings, as the arguments of a measured process.
#[derive(Clone, Copy, Debug)]
enum Who {
    Ours { defaults: bool },
    Slipstream(Settings),
}

pub(crate) async fn measure(buckets: &Buckets, effort: Effort, batch: BatchConfig) -> Vec<String> {
    let keys = effort.cases[effort.cases.len() - 1];
    let bucket = buckets.of(keys);
    let mut lines = Vec::new();
    let pairs = [
        (
            "no compaction",
            Who::Ours { defaults: false },
            Who::Slipstream(Settings::bare(batch)),
            Some(TARGET),
        ),
        ("defaults", Who::Ours { defaults: true }, Who::Slipstream(Settings::default()), None),
    ];
    for (settings, we, they, target) in pairs {
        // A case without a target is measured once.
        let rounds = if target.is_some() { ROUNDS } else { 1 };
        // Filled and restarted.
        let (mut ours, mut slipstreams) =
            ([Times::new(), Times::new()], [Times::new(), Times::new()]);
        for round in 0..rounds {
            let mut turns = [(we, &mut ours), (they, &mut slipstreams)];
            turns.rotate_left(round % 2);
            for (who, peaks) in turns {
                let (filled, restarted) = lives(buckets, bucket, who).await;
                peaks[0].push(filled);
                peaks[1].push(restarted);
            }
        }
        let what = ["filled from nothing", "restarted from its log"];
        for ((what, ours), slipstreams) in what.into_iter().zip(&ours).zip(&slipstreams) {
            let case = format!("peak memory, {keys} keys {what}, {settings}; slipstream");
            lines.push(line(&case, Figure::Memory, ours, slipstreams, target));
        }
    }
    lines
}

/// Returns the peaks in bytes of a replica that fills an empty log, and of one that resumes from
/// that log and finds one change.
async fn lives(buckets: &Buckets, bucket: &Bucket, who: Who) -> (f64, f64) {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let filled = peak(buckets, bucket, who, bucket.keys, &log).await;
    if let Who::Slipstream(_) = who {
        // slipstream rewrites a log at the first load after many checkpoints. The measured restart
        // must not include that.
        let (log, keys) = (log.clone(), bucket.keys);
        tokio::task::spawn_blocking(move || slipstreams::load(&log, keys)).await.unwrap();
    }
    bucket.ours.put(key(0), VALUE.to_vec()).await.unwrap();
    (filled, peak(buckets, bucket, who, 1, &log).await)
}

/// Runs this program as one side, until it has applied this number of updates.
async fn peak(buckets: &Buckets, bucket: &Bucket, who: Who, updates: usize, log: &Path) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        CHILD,
        &buckets.url,
        &bucket.name,
        &bucket.keys.to_string(),
        &updates.to_string(),
    ]);
    command.arg(log).args(who.to_arguments()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "the measured process: {}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().parse().expect("a number of bytes")
}

/// Runs a measured process, which prints its peak memory in bytes.
pub(crate) async fn child(arguments: Vec<String>) {
    let [url, bucket, keys, updates, log, who @ ..] = arguments.as_slice() else {
        panic!("arguments of a measured process")
    };
    let (keys, updates, log) = (keys.parse().unwrap(), updates.parse().unwrap(), Path::new(log));
    match Who::from_arguments(who) {
        Who::Ours { defaults } => {
            let store = connect(url).await.unwrap().store(bucket).await.unwrap();
            let options = if defaults { SnapshotOptions::new() } else { ours::bare() };
            let current = ours::Current::reach(&store, log, options, keys).await;
            assert_eq!(current.applied, updates);
            println!("{}", peak_so_far());
            drop(current);
        }
        Who::Slipstream(settings) => {
            let store = slipstream_at(url).await.store(bucket).await.unwrap();
            let current = slipstreams::Current::reach(&store, log, settings, updates).await;
            println!("{}", peak_so_far());
            current.check(keys);
        }
    }
}

/// Returns the peak memory in bytes.
fn peak_so_far() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kibibytes: u64 = line.trim_end_matches("kB").trim().parse().expect("a number");
    kibibytes * 1024
}

impl Who {
    fn to_arguments(self) -> Vec<String> {
        match self {
            Self::Ours { defaults } => vec!["ours".to_owned(), defaults.to_string()],
            Self::Slipstream(Settings { batch, threshold }) => {
                let window = batch.window.as_micros().to_string();
                let numbers = [batch.max as u64, batch.channel_capacity as u64, threshold];
                let numbers = numbers.map(|number| number.to_string());
                ["slipstream".to_owned(), window].into_iter().chain(numbers).collect()
            }
        }
    }

    fn from_arguments(arguments: &[String]) -> Self {
        let number = |text: &String| text.parse::<u64>().unwrap();
        match arguments {
            [ours, defaults] if ours == "ours" => {
                Self::Ours { defaults: defaults.parse().unwrap() }
            }
            [slipstream, window, max, capacity, threshold] if slipstream == "slipstream" => {
                let batch = BatchConfig {
                    window: Duration::from_micros(number(window)),
                    max: max.parse().unwrap(),
                    channel_capacity: capacity.parse().unwrap(),
                };
                Self::Slipstream(Settings { batch, threshold: number(threshold) })
            }
            _ => panic!("how a measured process is set"),
        }
    }
}
