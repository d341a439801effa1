//! Calls of a store or a connection as values, so that one function can handle all of them.

use std::future::ready;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use shizuku_kv::{
    Atomicity, Connection, Deadline, FencingToken, Key, KvEntry, KvError, KvFenced, KvResult,
    KvStore, KvStream, KvWatcher, KvWriter, Store, StoreConfig, StoreFigures, VersionToken, Watch,
    WatchCursor, WatchScope, Write,
};

use super::updates::{Updates, changed};

/// A call of one method of a store or a connection.
#[derive(Clone, Debug)]
pub struct Call {
    /// The method with its arguments.
    pub operation: Operation,
    /// The deadline of the call. For a scan or a listing, only its limit is used, as the timeout
    /// for each item. A call of a connection has the default deadline.
    pub deadline: Deadline,
}

/// A method of [`KvStore`] and its abilities, or of [`Connection`], with its arguments.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// `KvReader::entry`.
    Entry(Key),
    /// `KvReader::leader_entry`.
    LeaderEntry(Key),
    /// `KvReader::entries`.
    Entries(Vec<Key>),
    /// `KvReader::figures`.
    Figures(WatchScope),
    /// `KvReader::time`.
    Time,
    /// `KvReader::history`.
    History(Key),
    /// `KvReader::scan`.
    Scan(WatchScope),
    /// `KvReader::keys`.
    Keys(WatchScope),
    /// `KvWriter::write`.
    Write(Key, Write),
    /// `KvWriter::write_many`.
    WriteMany(Vec<(Key, Write)>, Atomicity),
    /// `KvFenced::raise`.
    Raise(Key, FencingToken),
    /// `KvWatcher::watch`.
    Watch(WatchScope, Option<WatchCursor>),
    /// `KvStore::refresh`.
    Refresh,
    /// `Connection::store_with_config`.
    Open(String, StoreConfig),
    /// `Connection::list_stores`.
    ListStores,
    /// `Connection::delete_store`.
    DeleteStore(String),
    /// `Connection::health`.
    Health,
    /// `Connection::shutdown`.
    Shutdown,
}

impl Operation {
    /// Returns the name of the method. A single write has the name of its kind, such as `create`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Entry(_) => "entry",
            Self::LeaderEntry(_) => "leader_entry",
            Self::Entries(_) => "entries",
            Self::Figures(_) => "figures",
            Self::Time => "time",
            Self::History(_) => "history",
            Self::Scan(_) => "scan",
            Self::Keys(_) => "keys",
            Self::Write(_, write) => write.name(),
            Self::WriteMany(..) => "write_many",
            Self::Raise(..) => "raise",
            Self::Watch(..) => "watch",
            Self::Refresh => "refresh",
            Self::Open(..) => "store_with_config",
            Self::ListStores => "list_stores",
            Self::DeleteStore(_) => "delete_store",
            Self::Health => "health",
            Self::Shutdown => "shutdown",
        }
    }

    /// Returns the key of an operation that has one key.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Entry(key)
            | Self::LeaderEntry(key)
            | Self::History(key)
            | Self::Write(key, _)
            | Self::Raise(key, _) => Some(key),
            _ => None,
        }
    }
}

impl Call {
    /// Returns the answer to a call whose request or acknowledgement is lost: an unknown outcome of
    /// a write, or a timeout.
    ///
    /// # Errors
    /// Returns that error, except for `write_many`, which has an error for each write.
    pub fn lost(&self) -> KvResult<Answer> {
        let name = self.operation.name();
        let unknown = |key: &Key| KvError::outcome_unknown(name, key.clone());
        match &self.operation {
            Operation::Write(key, _) | Operation::Raise(key, _) => Err(unknown(key)),
            Operation::WriteMany(writes, _) => {
                Ok(writes.iter().map(|(key, _)| Err(unknown(key))).collect::<Vec<_>>().into())
            }
            operation => Err(self.deadline.timeout(name, operation.key())),
        }
    }
}

/// Declares [`Answer`], and the conversions from and to the results of the methods.
macro_rules! answers {
    ($($(#[$doc:meta])* $variant:ident($content:ty),)+) => {
        /// The result of a [`Call`] that has succeeded.
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum Answer {
            $($(#[$doc])* $variant($content),)+
        }

        $(
            impl From<$content> for Answer {
                fn from(content: $content) -> Self {
                    Self::$variant(content)
                }
            }

            impl TryFrom<Answer> for $content {
                type Error = KvError;

                fn try_from(answer: Answer) -> KvResult<Self> {
                    match answer {
                        Answer::$variant(content) => Ok(content),
                        _ => Err(KvError::backend("hook", "the answer belongs to another method")),
                    }
                }
            }
        )+
    };
}

answers! {
    /// The answer of `entry` and `leader_entry`.
    Entry(Option<KvEntry>),
    /// The answer of `entries`.
    Entries(Vec<Option<KvEntry>>),
    /// The answer of `history` and `scan`.
    Stream(KvStream<KvEntry>),
    /// The answer of `keys`.
    Keys(KvStream<Key>),
    /// The answer of `figures`.
    Figures(StoreFigures),
    /// The answer of `time`.
    Time(Option<SystemTime>),
    /// The answer of a single write.
    Version(VersionToken),
    /// The answer of `write_many`.
    Versions(Vec<KvResult<VersionToken>>),
    /// The answer of `raise`.
    Token(FencingToken),
    /// The answer of `watch`.
    Watch(Watch),
    /// The answer of `store_with_config`.
    Store(Store),
    /// The answer of `list_stores`.
    Names(KvStream<String>),
    /// The answer of a method that returns nothing.
    Done(()),
}

impl Answer {
    /// Replaces each entry by the result of `with`. Removes the entry if the result is `None`. Keys
    /// of listings and markers of watches stay.
    #[must_use]
    pub fn map_entries(
        self,
        mut with: impl FnMut(KvEntry) -> Option<KvEntry> + Send + 'static,
    ) -> Self {
        match self {
            Self::Entry(entry) => Self::Entry(entry.and_then(with)),
            Self::Entries(entries) => {
                Self::Entries(entries.into_iter().map(|entry| entry.and_then(&mut with)).collect())
            }
            Self::Stream(entries) => Self::Stream(KvStream::new(
                entries.filter_map(move |entry| ready(entry.map(&mut with).transpose())),
            )),
            watch @ Self::Watch(_) => watch.map_updates(move |updates| {
                let shown = updates.filter_map(move |update| {
                    ready(match update {
                        Ok((update, cursor)) if update.entry().is_some() => {
                            let shown = update.into_entry().and_then(&mut with);
                            shown.map(|entry| Ok((entry.into(), cursor)))
                        }
                        update => Some(update),
                    })
                });
                shown.boxed()
            }),
            other => other,
        }
    }

    /// Replaces the updates of a watch, each with its cursor. Other answers stay.
    #[must_use]
    pub fn map_updates(self, with: impl FnOnce(Updates) -> Updates) -> Self {
        match self {
            Self::Watch(watch) => Self::Watch(changed(watch, with)),
            other => other,
        }
    }
}

/// The wrapped store or connection.
#[derive(Clone, Debug)]
pub enum Next {
    /// A store.
    Store(Arc<dyn KvStore>),
    /// A connection.
    Connection(Arc<dyn Connection>),
}

impl Next {
    /// Makes the call.
    ///
    /// # Errors
    /// Returns the error of the method. Returns [`KvError::Unsupported`] if the wrapped object does
    /// not have the method.
    pub async fn call(&self, call: Call) -> KvResult<Answer> {
        match self {
            Self::Store(store) => call_store(&**store, call).await,
            Self::Connection(connection) => call_connection(&**connection, call).await,
        }
    }
}

async fn call_store(store: &dyn KvStore, call: Call) -> KvResult<Answer> {
    let Call { operation, deadline } = call;
    let name = operation.name();
    match operation {
        Operation::Entry(key) => store.entry(&key, deadline).await.map(Answer::from),
        Operation::LeaderEntry(key) => store.leader_entry(&key, deadline).await.map(Answer::from),
        Operation::Entries(keys) => store.entries(&keys, deadline).await.map(Answer::from),
        Operation::Figures(scope) => store.figures(&scope, deadline).await.map(Answer::from),
        Operation::Time => store.time(deadline).await.map(Answer::from),
        Operation::Refresh => store.refresh(deadline).await.map(Answer::from),
        Operation::History(key) => Ok(store.history(key, deadline).into()),
        Operation::Scan(scope) => Ok(store.scan(scope, deadline.limit()).into()),
        Operation::Keys(scope) => Ok(store.keys(scope, deadline.limit()).into()),
        Operation::Write(key, write) => {
            let writer: &dyn KvWriter = store.writer().ok_or_else(|| missing(name))?;
            writer.write(&key, write, deadline).await.map(Answer::from)
        }
        Operation::WriteMany(writes, atomicity) => {
            let writer: &dyn KvWriter = store.writer().ok_or_else(|| missing(name))?;
            Ok(writer.write_many(writes, atomicity, deadline.limit()).await.into())
        }
        Operation::Raise(key, token) => {
            let fenced: &dyn KvFenced = store.fenced().ok_or_else(|| missing(name))?;
            fenced.raise(&key, token, deadline).await.map(Answer::from)
        }
        Operation::Watch(scope, from) => {
            let watcher: &dyn KvWatcher = store.watcher().ok_or_else(|| missing(name))?;
            watcher.watch(scope, from, deadline).await.map(Answer::from)
        }
        _ => Err(missing(name)),
    }
}

async fn call_connection(connection: &dyn Connection, call: Call) -> KvResult<Answer> {
    match call.operation {
        Operation::Open(name, config) => {
            connection.store_with_config(&name, config).await.map(Answer::from)
        }
        Operation::ListStores => Ok(connection.list_stores().into()),
        Operation::DeleteStore(name) => connection.delete_store(&name).await.map(Answer::from),
        Operation::Health => connection.health().await.map(Answer::from),
        Operation::Shutdown => connection.shutdown().await.map(Answer::from),
        operation => Err(missing(operation.name())),
    }
}

fn missing(operation: &'static str) -> KvError {
    KvError::unsupported(operation, "the wrapped object does not have this method")
}
