//! Locks over a store that misbehaves in one exact place: a write that is refused, lost or answered late, a read by a
//! replica that is behind, a key that is removed by hand, a store that is deleted. `lock_schedules` draws such things at
//! random; here is each of them that once went wrong, or is easy to get wrong.
//!
//! In memory the clock stands still but for what a test waits for: seconds of it take no time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

mod broken_tasks;
mod faults;
mod limits;
mod lost_writes;
mod sessions;
mod short_lived;
mod shutdown;
mod stale_reads;
mod store;
mod stores_gone;
mod stores_made_again;
mod world;
