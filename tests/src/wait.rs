//! Waits for conditions, because a fixed sleep is too long on a fast machine and too short on a
//! slow one.

use std::time::{Duration, Instant};

/// Timeout for waits of the harness and of tests, far longer than a loaded machine needs.
///
/// It is shorter than 60 seconds. By then a server has deleted an unused consumer, and a periodic
/// comparison has found a lost update, and neither may satisfy a wait.
pub const PATIENCE: Duration = Duration::from_secs(45);

const POLL: Duration = Duration::from_millis(1);

/// Calls `attempt` until it returns a value. Returns `None` if `deadline` passes first.
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

/// Waits until `condition` holds, and checks it every few milliseconds.
///
/// Its timeout is [`PATIENCE`] of real time, also under a paused Tokio clock.
///
/// # Panics
///
/// If the condition does not hold in time. The message names `what`.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not so within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
