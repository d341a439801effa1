//! The logs alone: the speed of reading a state, and of writing updates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::lines::{Figure, line};
use crate::rates::Rates;
use crate::turns::{Side, take_turns};
use crate::{Effort, ours, slipstreams};

/// Number of updates between two checkpoints.
const CHECKPOINT: usize = 1000;

/// Maximum ratio to slipstream's time: five times its rate.
const LOADED: f64 = 0.2;
const APPENDED: f64 = 1.0;

pub(crate) async fn measure(effort: Effort, rates: &mut Rates) -> Vec<String> {
    let mut lines = Vec::new();
    for &keys in effort.sizes {
        let (rounds, is_case) = (effort.rounds(keys), effort.is_case(keys));
        let logs = blocking(move || Compact::write(keys)).await;
        let (we_load, they_load) = (logs.ours.clone(), logs.slipstreams.clone());
        let [we, they] = take_turns(
            rounds,
            [
                Side::new(move || {
                    let log = we_load.clone();
                    blocking(move || ours::load(&log, keys))
                }),
                Side::new(move || {
                    let log = they_load.clone();
                    blocking(move || slipstreams::load(&log, keys))
                }),
            ],
        )
        .await;
        rates.note("loaded", "shizuku-kv", keys, &we);
        rates.note("loaded", "slipstream", keys, &they);
        if is_case {
            let figure =
                Figure::Loaded { keys, bytes: [length(&logs.ours), length(&logs.slipstreams)] };
            lines.push(line(
                &format!("log of {keys} keys loaded; slipstream"),
                figure,
                &we,
                &they,
                Some(LOADED),
            ));
            drop(logs);
            lines.push(appended(keys, rounds).await);
        } else {
            println!("measured: log of {keys} keys loaded");
        }
    }
    lines
}

async fn appended(keys: usize, rounds: usize) -> String {
    let (we_write, they_write) =
        blocking(move || (ours::updates(keys), slipstreams::updates(keys))).await;
    let (we_write, they_write) = (Arc::new(we_write), Arc::new(they_write));
    let [we, they] = take_turns(
        rounds,
        [
            Side::new(move || {
                let updates = Arc::clone(&we_write);
                blocking(move || in_new_directory(|log| ours::append(&updates, CHECKPOINT, log).1))
            }),
            Side::new(move || {
                let updates = Arc::clone(&they_write);
                blocking(move || {
                    in_new_directory(|log| slipstreams::append(&updates, CHECKPOINT, log).1)
                })
            }),
        ],
    )
    .await;
    let case = format!(
        "{keys} updates appended, checkpoints every {CHECKPOINT}, never synced; slipstream"
    );
    line(&case, Figure::Keys(keys), &we, &they, Some(APPENDED))
}

fn in_new_directory(work: impl FnOnce(&Path) -> Duration) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    work(&directory.path().join("log"))
}

/// The same state in a log of each side, without superseded entries, because slipstream rewrites a
/// log that is not compact when it loads it.
struct Compact {
    ours: PathBuf,
    slipstreams: PathBuf,
    _directory: TempDir,
}

impl Compact {
    fn write(keys: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ours, slipstreams) =
            (directory.path().join("ours"), directory.path().join("slipstreams"));
        let (mut writer, _) = ours::append(&ours::updates(keys), CHECKPOINT, &ours);
        writer.compact().unwrap();
        writer.close().unwrap();
        let (mut writer, _) =
            slipstreams::append(&slipstreams::updates(keys), CHECKPOINT, &slipstreams);
        writer.compact().unwrap();
        Self { ours, slipstreams, _directory: directory }
    }
}

fn length(file: &Path) -> u64 {
    file.metadata().unwrap().len()
}

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    tokio::task::spawn_blocking(work).await.expect("a measurement")
}
