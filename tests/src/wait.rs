//! Waiting for conditions: a fixed sleep is too long on a fast machine and too short on a slow
//! one.

use std::time::{Duration, Instant};

/// How long the harness waits for anything before it gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(1);

/// Asks `attempt` until it gives something, `None` if `deadline` passes first.
pub(crate) fn poll<T>(deadline: Instant, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        if let Some(found) = attempt() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until `condition` holds, asking again every few milliseconds.
///
/// The 20 seconds it has are real ones, also under a paused Tokio clock.
///
/// # Panics
///
/// If the condition does not hold in time; the message names `what`.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not so within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
