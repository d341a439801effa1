//! The applied watch with a durable log, from an empty log until it is caught up; and plain
//! delivery of the same updates.

use std::time::{Duration, Instant};

use shizuku_kv::snapshot::{SnapshotOptions, SyncPolicy};
use slipstream::BatchConfig;

use crate::buckets::{Bucket, Buckets, delivered};
use crate::lines::{Figure, line};
use crate::rates::Rates;
use crate::slipstreams::Settings;
use crate::turns::{Side, take_turns};
use crate::{Effort, ours, slipstreams};

/// Maximum ratio to slipstream's time; the target is three times its rate.
const THAN_SLIPSTREAM: f64 = 0.333;
/// Maximum ratio to plain async-nats's time; the target is 0.9 of its rate.
const THAN_DELIVERY: f64 = 1.11;

/// Window in milliseconds, number of updates, and room in the channel: slipstream's default, and
/// settings that may suit a large state better.
const BATCHES: [(u64, usize, usize); 6] = [
    (10, 100, 256),
    (10, 1000, 1000),
    (10, 8192, 8192),
    (100, 8192, 8192),
    (100, 32_768, 32_768),
    (1000, 32_768, 131_072),
];

/// Returns the batch settings that suit slipstream best: the fastest of two tries each.
pub(crate) async fn best_batch(buckets: &Buckets, keys: usize) -> BatchConfig {
    let bucket = buckets.of(keys);
    let mut best = (Duration::MAX, BatchConfig::default());
    for (window, max, channel_capacity) in BATCHES {
        let batch = BatchConfig { window: Duration::from_millis(window), max, channel_capacity };
        let settings = Settings::bare(batch);
        let took = slipstream_applies(bucket, settings)
            .await
            .min(slipstream_applies(bucket, settings).await);
        println!("slipstream, {keys} keys: {:.3} s with {batch:?}", took.as_secs_f64());
        if took < best.0 {
            best = (took, batch);
        }
    }
    println!("slipstream is best with {:?}\n", best.1);
    best.1
}

pub(crate) async fn measure(
    buckets: &Buckets,
    effort: Effort,
    batch: BatchConfig,
    rates: &mut Rates,
) -> Vec<String> {
    let mut lines = Vec::new();
    for bucket in buckets.iter() {
        let keys = bucket.keys;
        let bare = Settings::bare(batch);
        let [we, they, plain] = take_turns(
            effort.rounds(keys),
            [
                Side::new(move || we_apply(bucket, ours::bare())),
                Side::new(move || slipstream_applies(bucket, bare)),
                Side::new(move || deliver(bucket)),
            ],
        )
        .await;
        rates.note("applied", "shizuku-kv", keys, &we);
        rates.note("applied", "slipstream", keys, &they);
        rates.note("applied", "plain async-nats", keys, &plain);
        if effort.is_case(keys) {
            let figure = Figure::Keys(keys);
            let case = format!("{keys} keys applied, log never synced; slipstream");
            lines.push(line(&case, figure, &we, &they, Some(THAN_SLIPSTREAM)));
            let case = format!("{keys} keys applied, log never synced; delivered by async-nats");
            lines.push(line(&case, figure, &we, &plain, Some(THAN_DELIVERY)));
            lines.extend(other_settings(bucket, effort, bare).await);
        } else {
            println!("measured: {keys} keys applied and delivered");
        }
    }
    lines
}

/// Measures the cost of syncing, and both libraries with their defaults.
async fn other_settings(bucket: &Bucket, effort: Effort, bare: Settings) -> [String; 3] {
    let keys = bucket.keys;
    let [each, now_and_then, defaults, they, their_defaults] = take_turns(
        effort.rounds(keys).div_ceil(2),
        [
            Side::new(move || we_apply(bucket, ours::synced(SyncPolicy::EveryCheckpoint))),
            Side::new(move || {
                we_apply(bucket, ours::synced(SyncPolicy::Interval(Duration::from_secs(1))))
            }),
            Side::new(move || we_apply(bucket, SnapshotOptions::new())),
            Side::new(move || slipstream_applies(bucket, bare)),
            Side::new(move || slipstream_applies(bucket, Settings::default())),
        ],
    )
    .await;
    let figure = Figure::Keys(keys);
    let name = |log: &str, other: &str| format!("{keys} keys applied, {log}; slipstream, {other}");
    [
        line(&name("every checkpoint synced", "never synced"), figure, &each, &they, None),
        line(&name("synced every second", "never synced"), figure, &now_and_then, &they, None),
        line(&name("defaults (synced)", "defaults"), figure, &defaults, &their_defaults, None),
    ]
}

async fn we_apply(bucket: &Bucket, options: SnapshotOptions) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let current = ours::Current::reach(&bucket.ours, &log, options, bucket.keys).await;
    assert_eq!(current.applied, bucket.keys);
    current.took
}

async fn slipstream_applies(bucket: &Bucket, settings: Settings) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let current =
        slipstreams::Current::reach(&bucket.slipstreams, &log, settings, bucket.keys).await;
    current.check(bucket.keys);
    current.took
}

async fn deliver(bucket: &Bucket) -> Duration {
    let start = Instant::now();
    delivered(bucket).await;
    start.elapsed()
}
