//! Tests that schedules over a broken store cause violations. Otherwise they would prove nothing
//! over a correct one.

use crate::schedules::link::Broken;
use crate::schedules::schedule;

/// One of the schedules is enough. A deletion that does not compare does harm in one of seventy.
fn is_found(broken: Broken, what: &str) {
    let found = (0..1000)
        .filter_map(|seed| schedule::run(seed, broken).err())
        .find(|found| found.contains(what));
    assert!(found.is_some(), "a store of which {broken:?} passes for a sound one");
}

#[test]
fn store_without_compared_updates_is_found() {
    is_found(Broken::UpdatesDoNotCompare, "was given to");
}

#[test]
fn store_without_compared_deletions_is_found() {
    is_found(Broken::DeletionsDoNotCompare, "at a time");
}

#[test]
fn store_with_stopped_watches_is_found() {
    is_found(Broken::WatchesStop, "is not granted");
}
