//! A store that is open: its identity, the newest known settings, and its work in the threads of
//! the database.

use std::sync::{Arc, Mutex};

use super::engine::{Call, Engine};
use super::failure::Failure;
use super::tables::{Position, StoreId, StoreRow};
use super::transaction::{Loaded, Transaction};
use super::view::{Entries, Stop, View};
use crate::backend::embedded::{MAX_VALUE_SIZE, share};
use crate::store::{Key, KvEntry, KvError, KvResult, StoreConfig, lock};

/// A store, shared by its handles and its watches.
#[derive(Debug)]
pub(super) struct StoreState {
    pub(super) engine: Arc<Engine>,
    pub(super) id: StoreId,
    pub(super) name: String,
    pub(super) incarnation: [u8; 16],
    /// The newest settings that this process has seen in a commit.
    settings: Mutex<Settings>,
}

/// The settings that a handle uses.
#[derive(Clone, Copy, Debug)]
struct Settings {
    /// Number of changes of the settings before.
    number: u64,
    max_value_size: usize,
    key_ttl: bool,
    keeps_fences: bool,
}

impl Settings {
    fn new(number: u64, config: &StoreConfig) -> Self {
        Self {
            number,
            max_value_size: max_value_size(config),
            key_ttl: config.key_ttl == Some(true),
            keeps_fences: config.max_age.flatten().is_none(),
        }
    }
}

/// Returns the maximum size of a value in bytes.
pub(super) fn max_value_size(config: &StoreConfig) -> usize {
    config.max_value_size.flatten().unwrap_or(MAX_VALUE_SIZE)
}

impl StoreState {
    pub(super) fn new(engine: Arc<Engine>, id: StoreId, row: &StoreRow, settings: u64) -> Self {
        Self {
            engine,
            id,
            name: row.name.clone(),
            incarnation: row.incarnation,
            settings: Mutex::new(Settings::new(settings, &row.config())),
        }
    }

    fn settings(&self) -> Settings {
        *lock(&self.settings)
    }

    /// Uses these settings from now on, if they are newer. They must be those of a commit, because
    /// settings that were not committed would never be replaced. Also applies them to the entries,
    /// because the process that has changed them may have ended before.
    pub(super) fn learn(&self, row: &StoreRow, settings: u64) {
        {
            let mut known = lock(&self.settings);
            if known.number >= settings {
                return;
            }
            *known = Settings::new(settings, &row.config());
        }
        if row.limits_change.is_some() {
            self.engine.apply_limits(self.id);
        }
    }

    pub(super) fn max_value_size(&self) -> usize {
        self.settings().max_value_size
    }

    pub(super) fn key_ttl(&self) -> bool {
        self.settings().key_ttl
    }

    /// Returns whether newest entries never end by themselves, so that their tokens stay.
    pub(super) fn keeps_fences(&self) -> bool {
        self.settings().keeps_fences
    }

    pub(super) fn not_found(&self) -> KvError {
        KvError::StoreNotFound { store: self.name.clone() }
    }

    /// Returns the end of the log in a snapshot, and learns newer settings.
    fn position(&self, view: &View<'_>) -> Result<Position, Stop> {
        let Some(position) = view.position(self.id)? else {
            return Err(Stop::Error(self.not_found()));
        };
        if position.settings > self.settings().number
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
            share().await;
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
            let (config, newer) = match tables.store(state.id)? {
                Some(Loaded { row, position, .. }) => {
                    let is_newer = position.settings > state.settings().number;
                    (row.config(), is_newer.then(|| (row.clone(), position.settings)))
                }
                None => return Ok(Err(state.not_found())),
            };
            Ok(match work(&state, &config, tables)? {
                // Prevents the commit.
                Err(error) if is_alone => Err(error),
                result => Ok((result, newer)),
            })
        });
        let (result, newer) = written.await?;
        // Another job of the same commit may have changed the settings.
        if let Some((row, settings)) = newer {
            self.learn(&row, settings);
        }
        result
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use ::redb::{Builder, ConcurrencyMode, ReadableDatabase};
    use futures_util::FutureExt;

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

    /// A write is committed together with a change of the settings, and the commit fails.
    #[tokio::test]
    async fn settings_of_a_failed_commit_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file:{}", folder.path().join("data").display());
        let connection = FileConnection::open(&url).await.unwrap();
        let store = connection.store("config").await.unwrap();
        let engine = &connection.0.engine;
        let call = Call::new("test", Deadline::after(Deadline::DEFAULT));
        let change = engine.write(call, None, 0, false, |tables| {
            let mut row = tables.store(StoreId::FIRST)?.unwrap().row.clone();
            row.max_value_size = Some(1);
            Ok(Ok(tables.change_limits(StoreId::FIRST, row)?))
        });
        let put = store.put("key", "value");
        let failure = engine.write(call, None, 0, false, |_| {
            Err::<KvResult<()>, _>(Failure::damaged("not really"))
        });
        let mut all = Box::pin(async { tokio::join!(change, put, failure) });
        {
            // The writer takes all of them together afterwards.
            let _held = engine.shared().exclusively();
            assert!(all.as_mut().now_or_never().is_none());
        }
        let (change, put, failure) = all.await;
        assert!(change.is_err() && put.is_err() && failure.is_err());
        store.put("key", "value").await.unwrap();
    }
}
