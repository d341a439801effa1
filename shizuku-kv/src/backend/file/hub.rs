//! The watches that wait for changes, by store.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::watch;

use super::tables::StoreId;
use crate::store::lock;

/// The stores that are watched. A commit wakes the watches of its stores only.
#[derive(Debug, Default)]
pub(super) struct Hub(Mutex<HashMap<StoreId, watch::Sender<u64>>>);

impl Hub {
    pub(super) fn subscribe(&self, id: StoreId) -> watch::Receiver<u64> {
        let mut stores = lock(&self.0);
        stores.retain(|_, sender| sender.receiver_count() > 0);
        stores.entry(id).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Returns the stores that have a watch.
    pub(super) fn watched(&self) -> Vec<StoreId> {
        let stores = lock(&self.0);
        let watched = stores.iter().filter(|(_, sender)| sender.receiver_count() > 0);
        watched.map(|(id, _)| *id).collect()
    }

    pub(super) fn is_watched(&self) -> bool {
        lock(&self.0).values().any(|sender| sender.receiver_count() > 0)
    }

    /// Notifies the watches of these stores.
    pub(super) fn notify(&self, ids: impl IntoIterator<Item = StoreId>) {
        let stores = lock(&self.0);
        ids.into_iter().filter_map(|id| stores.get(&id)).for_each(count);
    }

    /// Notifies all watches, which then find out what has happened.
    pub(super) fn notify_all(&self) {
        lock(&self.0).values().for_each(count);
    }
}

fn count(sender: &watch::Sender<u64>) {
    sender.send_modify(|changes| *changes = changes.wrapping_add(1));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn commit_wakes_the_watches_of_its_stores_only() {
        let hub = Hub::default();
        let (first, second) = (hub.subscribe(StoreId(1)), hub.subscribe(StoreId(2)));
        hub.notify([StoreId(1), StoreId(3)]);
        assert!(first.has_changed().unwrap() && !second.has_changed().unwrap());
        hub.notify_all();
        assert!(second.has_changed().unwrap());
        drop((first, second));
        assert!(!hub.is_watched() && hub.watched().is_empty());
    }
}
