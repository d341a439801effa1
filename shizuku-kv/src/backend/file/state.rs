//! A store that is open: its identity, the newest known settings, and its work in the threads of
//! the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::engine::{Call, Engine};
use super::failure::Failure;
use super::tables::{Position, StoreId, StoreRow};
use super::transaction::{Loaded, Transaction};
use super::view::{Entries, Stop, View};
use crate::backend::embedded::MAX_VALUE_SIZE;
use crate::store::{Key, KvEntry, KvError, KvResult, StoreConfig};

/// A store, shared by its handles and its watches.
#[derive(Debug)]
pub(super) struct StoreState {
    pub(super) engine: Arc<Engine>,
    pub(super) id: StoreId,
    pub(super) name: String,
    pub(super) incarnation: [u8; 16],
    /// The number of changes of the settings that this process knows.
    settings: AtomicU64,
    max_value_size: AtomicUsize,
    key_ttl: AtomicBool,
    keeps_fences: AtomicBool,
}

impl StoreState {
    pub(super) fn new(engine: Arc<Engine>, id: StoreId, row: &StoreRow, settings: u64) -> Self {
        let state = Self {
            engine,
            id,
            name: row.name.clone(),
            incarnation: row.incarnation,
            settings: AtomicU64::new(settings),
            max_value_size: AtomicUsize::new(0),
            key_ttl: AtomicBool::new(false),
            keeps_fences: AtomicBool::new(false),
        };
        state.publish(&row.config());
        state
    }

    fn publish(&self, config: &StoreConfig) {
        let limit = config.max_value_size.flatten().unwrap_or(MAX_VALUE_SIZE);
        self.max_value_size.store(limit, Ordering::Relaxed);
        self.key_ttl.store(config.key_ttl == Some(true), Ordering::Relaxed);
        self.keeps_fences.store(config.max_age.flatten().is_none(), Ordering::Relaxed);
    }

    /// Uses these settings from now on, if they are newer. Also applies them to the entries,
    /// because the process that has changed them may have ended before.
    pub(super) fn learn(&self, row: &StoreRow, settings: u64) {
        if self.settings.fetch_max(settings, Ordering::AcqRel) < settings {
            self.publish(&row.config());
            if row.limits_change.is_some() {
                self.engine.apply_limits(self.id);
            }
        }
    }

    pub(super) fn max_value_size(&self) -> usize {
        self.max_value_size.load(Ordering::Relaxed)
    }

    pub(super) fn key_ttl(&self) -> bool {
        self.key_ttl.load(Ordering::Relaxed)
    }

    /// Returns whether newest entries never end by themselves, so that their tokens stay.
    pub(super) fn keeps_fences(&self) -> bool {
        self.keeps_fences.load(Ordering::Relaxed)
    }

    pub(super) fn not_found(&self) -> KvError {
        KvError::StoreNotFound { store: self.name.clone() }
    }

    /// Returns the end of the log in a snapshot, and learns newer settings.
    fn position(&self, view: &View<'_>) -> Result<Position, Stop> {
        let Some(position) = view.position(self.id)? else {
            return Err(Stop::Error(self.not_found()));
        };
        if position.settings > self.settings.load(Ordering::Acquire)
            && let Some(row) = view.row(self.id)?
        {
            self.learn(&row, position.settings);
        }
        Ok(position)
    }

    /// Reads from the store, in one transaction.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        call: Call<'_>,
        work: impl Fn(&Entries, Position) -> Result<T, Stop> + Send + Sync + 'static,
    ) -> KvResult<T> {
        let state = Arc::clone(self);
        let read = self.engine.read(call, move |view| {
            let position = state.position(view)?;
            work(&view.entries(state.id)?, position)
        });
        read.await
    }

    /// Returns the newest entry of a key, from memory if it is cached.
    pub(super) async fn entry(
        self: &Arc<Self>,
        call: Call<'_>,
        key: &Key,
    ) -> KvResult<Option<KvEntry>> {
        self.engine.check_open(call.operation)?;
        if let Some(entry) = self.engine.cached(self.id, key) {
            return Ok(entry);
        }
        let (before, wanted) = (self.engine.before(self.id, key), key.clone());
        let state = Arc::clone(self);
        let read = self.engine.read(call, move |view| {
            state.position(view)?;
            view.newest(state.id, &wanted)
        });
        let found = read.await?;
        if let Some(before) = before {
            self.engine.cache(before, self.id, key, found.clone());
        }
        Ok(found.entry)
    }

    /// Writes to the store.
    pub(super) async fn write<T, W>(
        self: &Arc<Self>,
        call: Call<'_>,
        bytes: usize,
        is_alone: bool,
        mut work: W,
    ) -> KvResult<T>
    where
        T: Send + 'static,
        W: FnMut(&Self, &StoreConfig, &mut Transaction<'_>) -> Result<KvResult<T>, Failure>
            + Send
            + 'static,
    {
        let state = Arc::clone(self);
        let written = self.engine.write(call, Some(&self.name), bytes, is_alone, move |tables| {
            let config = match tables.store(state.id)? {
                Some(Loaded { row, position, .. }) => {
                    state.learn(row, position.settings);
                    row.config()
                }
                None => return Ok(Err(state.not_found())),
            };
            work(&state, &config, tables)
        });
        written.await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use ::redb::{Builder, ConcurrencyMode, ReadableDatabase};

    use super::*;
    use crate::FileConnection;
    use crate::backend::file::tables::LimitsChange;
    use crate::store::{Connection, Deadline};

    /// Another process lowers the history, and is killed before it has removed older entries.
    #[tokio::test]
    async fn settings_left_half_applied_are_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let url = format!("file:{}?shared=true", path.display());
        let connection = FileConnection::open(&url).await.unwrap();
        let config = StoreConfig::new().history(5);
        let store = connection.store_with_config("config", config).await.unwrap();
        for number in 0..5 {
            store.put("key", vec![number]).await.unwrap();
        }
        let mut builder = Builder::new();
        builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
        let other = builder.open(path.join("shizuku.redb")).unwrap();
        let transaction = other.begin_write().unwrap();
        let mut tables = Transaction::begin(&transaction, 1).unwrap();
        let mut row = tables.store(StoreId::FIRST).unwrap().unwrap().row.clone();
        row.history = 1;
        row.limits_change = Some(LimitsChange { after: None, since: 1 });
        tables.change_limits(StoreId::FIRST, row).unwrap();
        tables.finish(1).unwrap();
        transaction.commit().unwrap();

        store.get("key").await.unwrap();
        let is_finished = || {
            let snapshot = other.begin_read().unwrap();
            let view = View::new(&snapshot, 0, true);
            view.row(StoreId::FIRST).unwrap().unwrap().limits_change.is_none()
        };
        let patience = Deadline::after(Deadline::DEFAULT * 10);
        while !is_finished() {
            assert!(!patience.remaining().is_zero(), "the settings stay half applied");
            tokio::task::yield_now().await;
        }
        assert_eq!(store.history("key").unwrap().try_collect().await.unwrap().len(), 1);
    }
}
