//! The backend of stores in a folder of this machine, on the embedded database redb (ADR 0100).
//!
//! | file | idea |
//! |---|---|
//! | `options.rs` | the options of a URL |
//! | `folder.rs` | the folder: checked, created, opened, and recognized later |
//! | `place.rs` | names and permissions of its files |
//! | `draft.rs` | a new database, which gets its name when it is whole |
//! | `opening.rs` | opening, one at a time for each path |
//! | `network.rs` | file systems that cannot be shared |
//! | `owner.rs` | owner files: the processes that have a folder open, for errors |
//! | `engine.rs` | the database from the view of its callers |
//! | `shared.rs` | the state that the threads share, and their beginning and end |
//! | `reads.rs`, `queue.rs` | the threads that read, and the reads that wait |
//! | `cache.rs` | the entries that were read last |
//! | `notice.rs`, `hub.rs` | watches that wait, and commits of other processes |
//! | `commit.rs` | the writer thread: group commits, withdrawn jobs, failed commits |
//! | `turns.rs` | the turns of the processes that write |
//! | `job.rs` | work for the writer thread, which can be withdrawn |
//! | `wake.rs` | events of the database file |
//! | `tables.rs` | the tables, and rows without entries |
//! | `record.rs` | an entry as bytes |
//! | `transaction.rs` | the rules of writes over tables |
//! | `upkeep.rs` | expiries, new settings and deleted stores, in pieces |
//! | `view.rs` | reads within one transaction |
//! | `state.rs` | an open store |
//! | `scan.rs`, `watch.rs` | streams that resume slice by slice |
//! | `store.rs` | the traits of the contract |
//! | `backup/` | a copy of a database that is written to |
//! | `failure.rs` | failures of the database, and their errors |

mod backup;
mod cache;
mod commit;
mod draft;
mod engine;
mod failure;
mod folder;
mod hub;
mod job;
mod network;
mod notice;
mod opening;
mod options;
mod owner;
mod place;
mod queue;
mod reads;
mod record;
mod scan;
mod shared;
mod state;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod transaction;
mod turns;
mod upkeep;
mod view;
mod wake;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use ::redb::ReadableTable;
use futures_core::future::BoxFuture;
use futures_util::{TryStreamExt, stream};

use self::engine::{Call, Engine};
use self::failure::Failure;
use self::options::Options;
use self::state::StoreState;
use self::store::{FileStore, capabilities};
use self::tables::{LimitsChange, NEXT_STORE, StoreId, StoreRow};
use self::transaction::Transaction;
use self::upkeep::Budget;
use crate::backend::embedded::incarnation;
use crate::store::{
    Connection, ConnectionCapabilities, Deadline, KvError, KvResult, KvStream, OpenStores, Store,
    StoreConfig, check_store_name, in_runtime, lock,
};

/// Stores in a folder of this machine, durable and without a server.
///
/// The URL is `file:PATH`, relative to the working directory or absolute. The folder is created if
/// it does not exist; its parent must exist. An acknowledged write is on disk. Clones share the
/// connection.
///
/// | option | meaning |
/// |---|---|
/// | none | this process writes, and others may open it with `read_only=true`; a second writer is rejected |
/// | `read_only=true` | this process reads and watches, beside a writer or without one |
/// | `shared=true` | any number of processes write; on local disks only |
/// | `exclusive=true` | no other process may open the folder, not even to read |
/// | `mode=0660` | permissions of new files, whatever the umask, such as for a group; 0600 otherwise |
/// | `label=NAME` | name of this process in the errors of others; its program otherwise |
/// | `sync=always` | an acknowledged write is on disk; the only value, because others are reserved |
///
/// Expiries use the clock of the machine. A process that only reads treats an expired entry as
/// absent. The tombstone is written by the next writer, and arrives at watches then.
///
/// Without `shared=true` and `read_only=true`, a `get` of a key that was read before is answered
/// from memory. It sees every acknowledged write. For up to 100 ms after the folder was removed or
/// replaced, it returns the last entry instead of an error.
///
/// Percent-encode `%` and `?` in the path. The path must not name a network file system: only
/// `shared=true` on Linux rejects the known types. A folder with other files and no database is
/// rejected.
///
/// A reader needs only the right to read, except after a writer was killed. Then the first process
/// that may write repairs the file. A reader that may not write gets [`KvError::Unavailable`] until
/// then. A reader that may start before the first writer retries on [`KvError::InvalidUrl`] (the
/// folder has no database) and on [`KvError::StoreNotFound`]. A reader leaves an owner file if it
/// may.
///
/// The folder contains `shizuku.redb`, `owner.json` or `owner-*.json` for each process that has it
/// open, and files that end in `.new` while they are being written. Do not delete `shizuku.redb`.
/// Keep all of them out of version control. The file `docs/folders.md` of the repository says which
/// processes can open a folder together, and how to back up and restore.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let parent = folder.path().display();
/// use shizuku_kv::{Connection, FileConnection};
///
/// let url = format!("file:{parent}/data"); // or "file:./data"
/// let connection = FileConnection::open(&url).await?;
/// connection.store("config").await?.put("greeting", "hello").await?;
/// connection.shutdown().await?;
///
/// // A later run of the program finds the value.
/// let next_run = FileConnection::open(&url).await?;
/// let greeting = next_run.store("config").await?.get("greeting").await?;
/// assert!(greeting.is_some_and(|entry| entry.value == "hello"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FileConnection(Arc<Inner>);

struct Inner {
    engine: Arc<Engine>,
    /// The open stores, so that their handles share the newest settings.
    states: Mutex<HashMap<StoreId, Weak<StoreState>>>,
    handles: OpenStores,
}

/// A store that was found or created.
struct Found {
    id: StoreId,
    row: StoreRow,
    settings: u64,
    is_changed: bool,
}

impl FileConnection {
    /// Opens the folder of a URL.
    ///
    /// Cancel safe: a database that is being opened is closed again.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidUrl`] if the URL or the folder is not valid. Returns
    /// [`KvError::Unavailable`] if another process has the folder open in a mode that does not fit,
    /// or the folder cannot be used. Returns [`KvError::Unauthorized`] if this process may not
    /// write to the database. Returns [`KvError::Unsupported`] for `shared=true` on a network file
    /// system. Returns [`KvError::Backend`] if the database is damaged or has an unknown format.
    /// Returns [`KvError::Timeout`] if opening takes longer than 5 s, or [`KvError::Unavailable`]
    /// with the process in the way if one is found. All errors of the folder name its path.
    pub async fn open(url: &str) -> KvResult<Self> {
        Self::open_with(url, true).await
    }

    /// Opens a folder without events of its file, so that only the interval notices the commits of
    /// other processes. For tests of this library.
    #[doc(hidden)]
    pub async fn open_without_events(url: &str) -> KvResult<Self> {
        Self::open_with(url, false).await
    }

    async fn open_with(url: &str, has_events: bool) -> KvResult<Self> {
        in_runtime("connect")?;
        let Some(rest) = url.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("file:")) else {
            let reason = "it does not begin with \"file:\"; write file:./data".to_owned();
            return Err(KvError::InvalidUrl { reason });
        };
        let options = Options { has_events, ..Options::parse(&url[rest.len()..])? };
        let call = Call::new("connect", Deadline::after(Deadline::DEFAULT));
        let engine = Arc::new(Engine::open(options, call).await?);
        let (states, handles) = (Mutex::default(), OpenStores::new());
        Ok(Self(Arc::new(Inner { engine, states, handles })))
    }

    /// Copies all stores to a new folder while they are used, as they are at one and the same
    /// moment. The parent of the folder must exist. Opening the folder opens the copied stores.
    /// They are other stores: cursors of the original are [expired](KvError::CursorExpired) there,
    /// so that a follower begins anew. The files of the copy get the permissions of the option
    /// `mode`.
    ///
    /// The copy is complete and on disk when this returns. There is no deadline. The copy reads in
    /// short slices, so that writes during the copy do not grow the database. If others write
    /// faster than it copies, it keeps writers out at the end, for at most one second.
    ///
    /// A connection with `read_only=true` can make a copy too, but cannot keep writers out.
    ///
    /// Cancel safe: the copy continues in the background. Its result is lost then: a complete copy
    /// has `shizuku.redb` in its folder.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidConfig`] if the path exists and is not an empty folder. Returns
    /// [`KvError::Unavailable`] if the copy cannot be written, or others write faster than it
    /// copies. Returns [`KvError::Closed`] if the connection is shut down before the end. The
    /// incomplete copy is then removed.
    pub async fn backup(&self, path: impl AsRef<Path>) -> KvResult<()> {
        in_runtime("backup")?;
        self.0.engine.backup(path.as_ref().to_owned()).await
    }

    async fn open_store(
        &self,
        operation: &'static str,
        name: &str,
        config: StoreConfig,
    ) -> KvResult<Store> {
        in_runtime(operation)?;
        check_store_name(name)?;
        config.validate()?;
        let deadline = Deadline::after(config.operation_deadline());
        let call = Call::new(operation, deadline);
        let found = match self.find(call, name, &config).await? {
            Some(found) => found,
            None => self.create_or_change(call, name, &config).await?,
        };
        let engine = &self.0.engine;
        if found.is_changed {
            let id = found.id;
            // If the caller gives up, the writer thread applies the rest.
            let piece = || {
                engine.write(call, Some(name), 0, false, move |tables| {
                    Ok(Ok(tables.apply_limits_some(id, &mut Budget::new())?))
                })
            };
            while !piece().await? {}
        } else if found.row.limits_change.is_some() {
            engine.apply_limits(found.id);
        }
        let state = self.state(&found);
        let store = Store::new(Arc::new(FileStore::new(state)), config.operation_deadline());
        self.0.handles.add(&store);
        Ok(store)
    }

    /// Finds a store that needs no change. Returns `None` if it has to be created or changed.
    async fn find(
        &self,
        call: Call<'_>,
        name: &str,
        config: &StoreConfig,
    ) -> KvResult<Option<Found>> {
        let wanted = name.to_owned();
        let found = self.0.engine.read(call, move |view| {
            let Some(id) = view.find(&wanted)? else { return Ok(None) };
            let (row, position) = (view.row(id)?, view.position(id)?);
            Ok(row.zip(position).map(|(row, position)| (id, row, position.settings)))
        });
        let found = found.await?;
        let is_read_only = self.0.engine.folder().mode().is_read_only();
        let Some((id, row, settings)) = found else {
            if config.must_exist || is_read_only {
                return Err(KvError::StoreNotFound { store: name.to_owned() });
            }
            return Ok(None);
        };
        let differences = config.differences(&row.config());
        if differences.is_empty() {
            return Ok(Some(Found { id, row, settings, is_changed: false }));
        }
        if !config.reconcile || is_read_only {
            return Err(KvError::ConfigMismatch { store: name.to_owned(), differences });
        }
        Ok(None)
    }

    async fn create_or_change(
        &self,
        call: Call<'_>,
        name: &str,
        config: &StoreConfig,
    ) -> KvResult<Found> {
        let (wanted, config) = (name.to_owned(), config.clone());
        let created = self.0.engine.write(call, Some(name), 0, false, move |tables| {
            create_or_change(tables, &wanted, &config)
        });
        created.await
    }

    /// Returns the shared state of a store.
    fn state(&self, found: &Found) -> Arc<StoreState> {
        let mut states = lock(&self.0.states);
        states.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = states.get(&found.id).and_then(Weak::upgrade) {
            state.learn(&found.row, found.settings);
            return state;
        }
        let engine = Arc::clone(&self.0.engine);
        let state = Arc::new(StoreState::new(engine, found.id, &found.row, found.settings));
        states.insert(found.id, Arc::downgrade(&state));
        state
    }
}

/// Creates a store, or changes its settings, within a transaction.
fn create_or_change(
    tables: &mut Transaction<'_>,
    name: &str,
    config: &StoreConfig,
) -> Result<KvResult<Found>, Failure> {
    let id = match tables.names.get(name.as_bytes())? {
        Some(id) => Some(StoreId::read(id.value())?),
        None => None,
    };
    let Some(id) = id else {
        if config.must_exist {
            return Ok(Err(KvError::StoreNotFound { store: name.to_owned() }));
        }
        let next = match tables.about.get(NEXT_STORE)? {
            Some(next) => StoreId::read(next.value())?,
            None => StoreId::FIRST,
        };
        let Some(after) = next.0.checked_add(1) else {
            return Err(Failure::damaged("it has had too many stores"));
        };
        tables.about.insert(NEXT_STORE, StoreId(after).bytes().as_slice())?;
        let row = StoreRow::new(name, incarnation(), config);
        tables.add_store(next, row.clone())?;
        return Ok(Ok(Found { id: next, row, settings: 0, is_changed: false }));
    };
    let now = tables.now();
    let Some(store) = tables.store(id)? else {
        return Err(Failure::damaged("a store has no position"));
    };
    let differences = config.differences(&store.row.config());
    if differences.is_empty() {
        let settings = store.position.settings;
        return Ok(Ok(Found { id, row: store.row.clone(), settings, is_changed: false }));
    }
    if !config.reconcile {
        return Ok(Err(KvError::ConfigMismatch { store: name.to_owned(), differences }));
    }
    let merged = config.clone().over(&store.row.config());
    if let Err(error) = merged.validate() {
        return Ok(Err(error));
    }
    let row = StoreRow {
        limits_change: Some(LimitsChange { after: None, since: now }),
        ..StoreRow::new(name, store.row.incarnation, &merged)
    };
    let settings = store.position.settings + 1;
    tables.change_limits(id, row.clone())?;
    Ok(Ok(Found { id, row, settings, is_changed: true }))
}

impl fmt::Debug for FileConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileConnection").field("engine", &self.0.engine).finish_non_exhaustive()
    }
}

impl Connection for FileConnection {
    fn capabilities(&self) -> ConnectionCapabilities {
        capabilities(self.0.engine.folder().mode())
    }

    fn store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<Store>> {
        Box::pin(self.open_store("store", name, StoreConfig::new()))
    }

    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>> {
        Box::pin(self.open_store("store_with_config", name, config))
    }

    fn list_stores(&self) -> KvStream<String> {
        if let Err(error) = in_runtime("list_stores") {
            return KvStream::error(error);
        }
        let inner = Arc::clone(&self.0);
        let names = async move {
            let call = Call::new("list_stores", Deadline::after(Deadline::DEFAULT));
            let names = inner.engine.read(call, |view| Ok(view.names()?)).await?;
            Ok(stream::iter(names.into_iter().map(Ok)))
        };
        KvStream::new(stream::once(names).try_flatten())
    }

    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>> {
        Box::pin(async move {
            in_runtime("delete_store")?;
            check_store_name(name)?;
            let call = Call::new("delete_store", Deadline::after(Deadline::DEFAULT));
            if self.0.engine.folder().mode().is_read_only() {
                let reason = "the folder is open with read_only=true; open it for writing";
                return Err(KvError::unsupported("delete_store", reason));
            }
            let wanted = name.to_owned();
            let deleted = self.0.engine.write(call, Some(name), 0, false, move |tables| {
                let id = match tables.names.get(wanted.as_bytes())? {
                    Some(id) => StoreId::read(id.value())?,
                    None => return Ok(Err(KvError::StoreNotFound { store: wanted.clone() })),
                };
                tables.remove_store(id, &wanted)?;
                Ok(Ok(()))
            });
            deleted.await
        })
    }

    fn health(&self) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move {
            in_runtime("health")?;
            self.0.engine.check(Call::new("health", Deadline::after(Deadline::DEFAULT))).await
        })
    }

    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move {
            in_runtime("shutdown")?;
            let released = self.0.handles.close(Deadline::after(Deadline::DEFAULT)).await;
            let call = Call::new("shutdown", Deadline::after(Deadline::DEFAULT));
            self.0.engine.close(call).await.and(released)
        })
    }
}
