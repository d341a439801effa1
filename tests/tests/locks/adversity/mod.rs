//! Locks over a store that misbehaves at one exact point. A write is rejected, lost or answered
//! late, a replica that is behind answers a read, a key is removed by hand, or a store is deleted.
//! `locks::schedules` draws such faults at random. This binary has each of them that once went
//! wrong, or is easy to get wrong.
//!
//! In memory the clock moves only while a test waits, so that seconds of it take no time.

mod broken_tasks;
mod dead_sessions;
mod denied_watches;
mod driving_callers;
mod faults;
mod left_behind;
mod limits;
mod lost_writes;
mod recreated_stores;
mod requests;
mod sessions;
mod short_lived;
mod shutdown;
mod stale_reads;
mod store;
mod stores_gone;
mod world;
