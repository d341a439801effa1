//! Tests that measure the memory of their process, by its allocator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod abandoned_requests;
mod fuzz_targets;
mod storm;
mod ten_thousand_rounds;

use std::time::Duration;

use peak_alloc::PeakAlloc;
use shizuku_kv_tests::PATIENCE;
use tokio::sync::Mutex;
use tokio::time::Instant;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Locked by each test, because the allocator counts for the whole process.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Time after which the tasks of connections and servers have freed what they held.
const REST: Duration = Duration::from_secs(1);

/// Returns the number of bytes that the process has allocated at rest, and waits until they are at
/// most this many, because a loaded machine runs the tasks that free them later.
async fn allocated_at_most(limit: usize, rest: Duration) -> usize {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let now = allocated(rest).await;
        if now <= limit || std::time::Instant::now() >= deadline {
            return now;
        }
    }
}

/// Returns the number of bytes that the process has allocated at rest: the minimum, after it has
/// not fallen for this time.
async fn allocated(rest: Duration) -> usize {
    let (mut least, mut since) = (usize::MAX, Instant::now());
    while since.elapsed() < rest {
        let now = MEMORY.current_usage();
        if now < least {
            (least, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    least
}
