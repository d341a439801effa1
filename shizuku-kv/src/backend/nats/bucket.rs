//! A bucket: the names, and the newest known settings.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use super::link::Link;
use super::settings::{Settings, lives_longer};
use super::stream_info::StreamInfo;
use super::wire::{stream_name, subject_prefix};
use crate::store::{ConnectionCapabilities, StoreConfig};

/// Maximum delay of an answer that a later one has overtaken.
const OVERTAKING: Duration = Duration::from_secs(1);

/// A bucket that exists: its names, which never change, and its newest known settings.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) name: String,
    pub(super) stream: String,
    pub(super) prefix: String,
    settings: ArcSwap<Settings>,
    /// Whether this handle was opened with a request for times to live.
    asks_for_ttl: bool,
    /// Held while the settings are requested, so that concurrent writes send one request.
    pub(super) refreshing: tokio::sync::Mutex<()>,
}

impl Bucket {
    pub(super) fn new(name: &str, info: &StreamInfo, config: &StoreConfig) -> Self {
        let asks_for_ttl = config.key_ttl == Some(true);
        Self {
            name: name.to_owned(),
            stream: stream_name(name),
            prefix: subject_prefix(name),
            settings: ArcSwap::from_pointee(info.settings().for_handle(asks_for_ttl)),
            asks_for_ttl,
            refreshing: tokio::sync::Mutex::default(),
        }
    }

    /// The newest known settings.
    pub(super) fn settings(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// Returns the newest known settings, shared, for longer use.
    pub(super) fn settings_arc(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Adopts the settings of an answer, unless a later answer arrived a moment before. The limit
    /// is a moment, because the clock of a new leader may be behind that of the last.
    pub(super) fn learn(&self, info: &StreamInfo) {
        let newest = info.settings().for_handle(self.asks_for_ttl);
        self.settings.rcu(|known| {
            if newest.as_of < known.as_of && known.age() < OVERTAKING {
                return Arc::clone(known);
            }
            let mut newest = newest.clone();
            if newest.created != known.created {
                // The known values belong to an earlier store of the same name.
                return Arc::new(newest);
            }
            newest.cursors_from = newest.cursors_from.max(known.cursors_from);
            if lives_longer(known.tombstone_life, newest.tombstone_life) {
                // Another client has changed the settings, and left no note.
                newest.cursors_from = newest.cursors_from.max(info.last_sequence());
            }
            Arc::new(newest)
        });
    }
}

/// Returns the capabilities of the server of this connection.
pub(super) fn capabilities(link: &Link) -> ConnectionCapabilities {
    let markers = link.server_is_at_least(2, 11);
    ConnectionCapabilities {
        write: true,
        compare_and_swap: true,
        atomic_writes: false,
        watch: true,
        watch_resume: true,
        ordered_versions: true,
        max_history: 64,
        max_age: true,
        key_ttl: markers,
        fenced_writes: true,
        expiry_events: markers,
        leader_reads: true,
        linearizable_reads: true,
        persistent: true,
        shared: true,
    }
}
