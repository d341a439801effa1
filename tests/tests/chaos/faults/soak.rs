//! Repeats the runs for a chosen time: `scripts/soak`.

use std::time::{Duration, Instant};

use shizuku_kv_tests::number;

use crate::faults::run::{self, Plan};
use crate::faults::summary::Summary;

/// Duration of the faults in each run of a soak.
const LENGTH: Duration = Duration::from_secs(60);

/// Runs in turn on a single server and on a cluster, for `SHIZUKU_SOAK_MINUTES` (one by default),
/// with seeds that follow from `SHIZUKU_SOAK_SEED`. With `SHIZUKU_SOAK_REPORT` it also writes the
/// summary to that file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: scripts/soak, or scripts/test --long"]
async fn soak() {
    let minutes: f64 = number("SHIZUKU_SOAK_MINUTES").unwrap_or(1.0);
    let seed: u64 = number("SHIZUKU_SOAK_SEED").unwrap_or(1);
    let length = Duration::from_secs_f64(minutes * 60.0);
    let each = LENGTH.min(length / 2);
    let start = Instant::now();
    let mut soak = Summary { seed, ..Summary::default() };
    let mut runs = 0;
    while start.elapsed() < length {
        let nodes = if runs % 2 == 0 { 1 } else { 3 };
        // Seeds of neighbouring soaks are far apart.
        let plan = Plan { seed: seed.wrapping_mul(1_000_000) + runs, nodes, length: each };
        runs += 1;
        let summary = match tokio::spawn(run::run(plan)).await {
            Ok(summary) => summary,
            Err(failed) => {
                let why = failed.into_panic();
                let why =
                    why.downcast_ref::<String>().cloned().unwrap_or_else(|| "no reason".to_owned());
                let violations =
                    vec![format!("the run with seed {} on {nodes} nodes failed: {why}", plan.seed)];
                Summary {
                    seed: plan.seed,
                    version: soak.version.clone(),
                    violations,
                    ..Summary::default()
                }
            }
        };
        println!(
            "after {:.0?}: run {runs}: {} faults, {} events, {} violations",
            start.elapsed(),
            summary.total(),
            summary.events,
            summary.violations.len()
        );
        if !summary.violations.is_empty() {
            println!("{}", summary.failure());
        }
        soak.add(summary);
    }
    let violations = soak.violations.len();
    let report = format!(
        "{soak}\nsoak: {} faults, {} events, {violations} violations\n",
        soak.total(),
        soak.events
    );
    println!("{report}");
    if let Some(path) = std::env::var_os("SHIZUKU_SOAK_REPORT") {
        std::fs::write(path, &report).expect("write the report");
    }
    assert_eq!(violations, 0, "{}", soak.violations.join("\n"));
}
