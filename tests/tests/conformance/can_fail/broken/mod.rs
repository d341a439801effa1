//! Backends that break the contract, each in one way, to test the conformance suite.
//!
//! [`broken`] wraps any connection, and with [`Fault::None`] it behaves like the wrapped one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use shizuku_kv::{
    Connection, ConnectionCapabilities, Deadline, FencingToken, Key, KvEntry, KvError, KvResult,
    KvStream, ReadConsistency, Store, StoreConfig,
};
use shizuku_kv_tests::faulty::{
    Answer, Call, FaultyConnection, FaultyStore, Hook, Next, Operation,
};

mod fenced;
mod reader;
mod watcher;
mod writer;

/// A way to break the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// No fault.
    None,
    /// Claims little, and correctly rejects the rest.
    Modest,
    /// Claims little, and does the rest nevertheless.
    FalselyModest,

    /// Confuses upper and lower case in keys.
    IgnoresCase,
    /// Rejects keys over 255 bytes.
    ShortKeys,
    /// Rejects `=` and `/` in keys.
    NarrowKeys,
    /// An opened store already has content.
    WritesAtOpening,

    /// Treats an empty value as a deletion.
    EmptyIsDeleted,
    /// Truncates values at the first zero.
    CutsAtZero,
    /// Reports twice the actual limit, and truncates larger values.
    LimitLies,
    /// Reports half of the requested limit.
    HalfTheLimit,
    /// Shows the last value in `Debug`.
    ShowsValues,

    /// Every entry has the same version.
    OneVersion,
    /// `delete` returns the version of what it deleted.
    OldVersionOfDeletion,
    /// `put` returns the version of the previous write.
    OldVersionOfPut,
    /// Reads return other versions than writes, and swaps accept either.
    ShiftedVersions,

    /// `update` does not compare.
    LostUpdate,
    /// `update` of an absent key creates it.
    UpdateCreates,
    /// `update` never succeeds over a tombstone.
    UpdateRejectsTombstones,
    /// `update` reports a conflict, and writes.
    UpdateWritesAnyway,
    /// `create` does not compare.
    CreateOverwrites,
    /// `create` over a tombstone is rejected.
    CreateRejectsTombstones,
    /// `create` reads, waits, and then writes.
    CreateRaces,
    /// `create` over a tombstone swaps once, and reports the key as existing if that loses.
    CreateTriesOnce,
    /// `create` never compares with an empty value.
    CreateOverEmpty,
    /// Deleting an absent key is rejected.
    DeleteNeedsValue,
    /// Deleting keeps the value.
    DeleteDoesNothing,
    /// `delete_with_version` does not compare.
    DeleteIgnoresVersion,
    /// `delete_with_version` is always rejected.
    DeleteNeverMatches,
    /// `purge` is `delete`.
    PurgeIsDelete,
    /// `purge` also purges the keys that begin with the key.
    PurgeTakesChildren,
    /// `put` writes twice.
    PutTwice,
    /// `put` is dropped if the key exists.
    PutKeepsOld,
    /// `put_many` answers in another order.
    PutManyShuffled,
    /// `put_many` stops at the third item.
    PutManyStops,
    /// `put_many` writes the last item first.
    PutManyBackwards,
    /// `write_many` makes unconditional writes of all.
    WriteManyIgnoresConditions,
    /// A deletion with a time to live is made without it.
    CombinationsSimplified,
    /// Entries carry neither author nor reason.
    MetadataDropped,
    /// Atomic writes are made one by one.
    AllIsEach,

    /// Reads answer from a cache that writes do not update.
    StaleReads,
    /// Tombstones are not found.
    ForgetsTombstones,
    /// Reads find keys that were never written.
    FindsEverything,
    /// Figures do not count tombstones.
    FiguresWithoutTombstones,
    /// All stores have the same incarnation.
    IncarnationOfAll,
    /// `get_many` answers in the order of the names.
    GetManySorted,
    /// `get_many` answers for 1,000 keys at most.
    GetManyShort,
    /// The newest entry of a history comes first.
    HistoryBackwards,
    /// A history has the newest entry only.
    HistoryIsOne,
    /// A store keeps more versions than its settings say.
    HistoryIsLonger,
    /// The history of a key includes keys that begin with it.
    HistoryOfChildren,

    /// A scan has its first item twice.
    ScanRepeats,
    /// A scan has no more than a hundred items.
    ScanIsShort,
    /// A scan leaves out keys that were overwritten since it began.
    ScanSkipsOverwritten,
    /// A scan repeats keys that were overwritten since it began.
    ScanRepeatsOverwritten,
    /// A scan ends at an entry that is no longer held.
    ScanEndsAtRemoved,
    /// A scan has every stored version.
    ScanHasHistory,
    /// A scan never has an item.
    ScanHangs,
    /// A scan that ran out of time ends as if it were complete.
    ScanEndsEarly,

    /// Prefixes select whole tokens.
    TokenPrefixes,
    /// A key selects keys that begin with it.
    KeyHasChildren,
    /// Each of several prefixes delivers on its own.
    OverlapsTwice,
    /// Live changes outside the scope arrive.
    ScopeEndsWithState,

    /// No watch ever catches up.
    NoMarker,
    /// The marker comes only after an update.
    NoMarkerWhenEmpty,
    /// The marker comes again after each update.
    ManyMarkers,
    /// The marker comes before the whole state if something changes meanwhile.
    EarlyMarker,
    /// The state ends at an entry that is no longer held.
    StateEndsAtRemoved,
    /// The marker comes first.
    MarkerFirst,
    /// The state has every stored version.
    StateIsHistory,
    /// Every third update arrives twice.
    DuplicatedUpdate,
    /// Some updates arrive after the next of their key.
    GoesBack,
    /// The first live update is lost.
    LosesFirstLive,
    /// Every seventh update is lost.
    LosesSome,
    /// Deletions do not arrive.
    DropsDeletions,
    /// Values arrive empty.
    DropsValues,
    /// A value is lost if the reader had to wait for it.
    LosesAfterPending,
    /// A second watch takes the updates of the first.
    OneWatchOnly,
    /// A watch keeps only the last twenty updates for a slow reader.
    LossyBuffer,
    /// A watch whose store is gone ends as if it were complete.
    EndsSilently,
    /// A watch whose store is gone waits.
    WaitsForGoneStore,
    /// A watch never delivers anything.
    WatchHangs,

    /// A cursor that cannot be honoured is treated as current.
    ForgetsIncarnation,
    /// A resumed watch begins with live updates.
    SkipsForward,
    /// A resumed watch begins with the state.
    ResumesFromStart,
    /// A cursor from within the state claims that all of it was delivered.
    StateCursorIsEnd,
    /// A resumed watch delivers all scopes.
    ResumeForgetsScope,
    /// A resumed watch does not deliver deletions from before it.
    ResumeForgetsDeletions,
    /// The cursors of a resumed watch do not move.
    ResumedCursorStays,
    /// No cursor can be resumed from twice.
    CursorUsedOnce,

    /// Values with a time to live do not expire.
    NeverExpires,
    /// `update` with a time to live has none.
    RenewalForgetsTtl,
    /// `update` with a time to live does not write.
    RenewalIgnored,
    /// Swaps with a time to live do not compare.
    TtlIgnoresVersions,
    /// Every write has a time to live.
    EverythingExpires,
    /// Expiry does not arrive at watches.
    SilentExpiry,
    /// An expired value arrives as a deletion.
    ExpiryIsDelete,
    /// An expired value leaves no tombstone, and stays in the history.
    ExpiryForgotten,
    /// Values expire in half the time.
    ExpiresEarly,
    /// The maximum age is ignored.
    ForgetsMaxAge,
    /// Every store has times to live.
    TtlUnasked,
    /// Any time to live is accepted, and rounded up.
    TtlAnyLength,

    /// A time to live is cut to the maximum age.
    TtlOverAge,
    /// Deletions arrive twice.
    DeletionTwice,
    /// A store that loses tokens accepts every token.
    FenceLost,
    /// Fenced writes are claimed, and stores have none.
    FencesMissing,
    /// A store whose values expire has fenced writes.
    FencesAnywhere,
    /// Older tokens are accepted.
    FenceIgnored,
    /// Equal tokens are rejected.
    FenceRejectsEqual,
    /// A token rejects the writes of every key.
    FenceOfStore,
    /// A fenced deletion leaves no token.
    FencedDeleteForgets,
    /// A fenced create ignores the token of a tombstone.
    FencedCreateForgets,
    /// A fenced deletion of an absent key is rejected.
    FencedDeleteNeedsValue,
    /// Fenced swaps do not compare.
    FencedSwapsIgnoreVersions,
    /// Fenced swaps compare the token last.
    FenceComparedLast,
    /// A put without a token keeps the existing one.
    FenceStays,
    /// A fenced put reads the token, waits, and then writes.
    FenceRaces,
    /// A fenced write fails if another one happens in between.
    FencedTriesOnce,
    /// Reads and watches show no tokens.
    FenceHidden,
    /// Watches show no tokens.
    FenceNotWatched,
    /// raise does nothing.
    RaiseDoesNothing,
    /// raise puts an empty value, whatever the entry is.
    RaiseEmpties,
    /// raise also writes if the key has a newer token.
    RaiseAlwaysWrites,
    /// raise reads the value, waits, and then writes it.
    RaiseRaces,
    /// raise removes the time to live of a value.
    RaiseForgetsLife,

    /// The store's clock is an hour late.
    SlowClock,
    /// Opening a store always creates a new one.
    StoreIsFresh,
    /// All stores are the same.
    OneStore,
    /// A store that must exist is created.
    MustExistCreates,
    /// Any name is accepted.
    AnyName,
    /// Settings are ignored.
    AnySettings,
    /// The store claims capabilities that its connection does not.
    StoreClaimsMore,
    /// Another configuration is not noticed.
    ConfigNotCompared,
    /// Unset settings are compared with the defaults.
    ComparesDefaults,
    /// Reconciling changes nothing.
    ReconcileDoesNothing,
    /// The first store is not listed.
    ListForgets,
    /// Deleting a store does nothing.
    DeleteStoreDoesNothing,
    /// Deleting a missing store succeeds.
    DeleteStoreForgives,
    /// A deleted store is an empty one.
    GoneIsEmpty,
    /// Limits cannot be removed.
    LimitsStay,
    /// A handle keeps the limit that its store had when it was opened.
    LimitOfOpening,
    /// A store with times to live accepts a history, and vice versa.
    HistoryWithTtl,
    /// A full store accepts more.
    NeverFull,
    /// A history above the claimed maximum is truncated.
    HistoryIsCut,

    /// Every write with little time takes effect, and is reported as timed out.
    TimedOutWriteLands,
    /// Writes ignore their deadline.
    WritesHang,
    /// Handles have the default deadline.
    ForgetsDeadline,
    /// The backend is never healthy.
    NeverHealthy,
    /// `put` panics.
    Panics,
    /// Shutting down does nothing.
    ShutdownDoesNothing,
    /// Shutting down twice is an error.
    ShutdownOnce,
    /// Claims that others see the same stores, and that they are persistent.
    ClaimsToLast,
}

/// The shared state of all handles of a store.
#[derive(Debug, Default)]
struct Memory {
    reads: HashMap<Key, Option<KvEntry>>,
    cursors: Vec<Vec<u8>>,
    last_value: Option<String>,
    watches: usize,
    newest_token: Option<FencingToken>,
}

/// A connection with one [`Fault`].
#[derive(Debug)]
struct Broken {
    fault: Fault,
    is_shut_down: AtomicBool,
}

/// Breaks a connection.
pub(crate) fn broken(connection: Arc<dyn Connection>, fault: Fault) -> Arc<dyn Connection> {
    let hook = Broken { fault, is_shut_down: AtomicBool::new(false) };
    FaultyConnection::over(connection, &Arc::new(hook))
}

impl Broken {
    async fn open(
        &self,
        mut name: String,
        mut config: StoreConfig,
        next: &Next,
    ) -> KvResult<Store> {
        let fault = self.fault;
        let deadline = config.operation_deadline();
        if fault == Fault::Modest {
            self.reject_unclaimed(&config)?;
        }
        match fault {
            Fault::StoreIsFresh => {
                let operation = Operation::DeleteStore(name.clone());
                let deadline = Deadline::after(Deadline::DEFAULT);
                next.call(Call { operation, deadline }).await.ok();
            }
            Fault::OneStore => {
                if config != StoreConfig::new() || config.must_exist {
                    return self.open_as_it_is(&name, config, next).await;
                }
                name = "conformance-the-one-store".to_owned();
            }
            Fault::MustExistCreates => config.must_exist = false,
            Fault::AnyName => {
                name =
                    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
                name = if name.is_empty() {
                    "empty".to_owned()
                } else {
                    name.chars().take(64).collect()
                };
            }
            Fault::AnySettings if config.validate().is_err() => config = StoreConfig::new(),
            Fault::HalfTheLimit => {
                config.max_value_size = config.max_value_size.map(|size| size.map(|size| size / 2))
            }
            Fault::HistoryIsLonger if config.key_ttl != Some(true) => {
                config.history = config.history.filter(|versions| *versions > 64).or(Some(64));
            }
            Fault::HistoryIsCut => config.history = config.history.map(|versions| versions.min(4)),
            Fault::ComparesDefaults => {
                config.description = config.description.or_else(|| Some(String::new()));
            }
            Fault::ReconcileDoesNothing if config.reconcile => {
                config = StoreConfig::new().deadline(deadline);
            }
            Fault::ExpiresEarly => {
                config.max_age = config
                    .max_age
                    .map(|age| age.map(|age| if age == Duration::MAX { age } else { age / 2 }));
            }
            Fault::ForgetsMaxAge if config.validate().is_ok() => config.max_age = None,
            Fault::TtlUnasked if config.history.is_none() => config.key_ttl = Some(true),
            Fault::EverythingExpires if config.history.is_none() => config.key_ttl = Some(true),
            Fault::LimitsStay => {
                config.max_value_size = config.max_value_size.filter(Option::is_some);
                config.max_bytes = config.max_bytes.filter(Option::is_some);
                config.max_age = config.max_age.filter(Option::is_some);
            }
            Fault::NeverFull if config.validate().is_ok() => config.max_bytes = None,
            _ => {}
        }
        let mut opened = self.open_as_it_is(&name, config.clone(), next).await;
        if fault == Fault::ConfigNotCompared
            && matches!(opened, Err(KvError::ConfigMismatch { .. }))
        {
            opened = self.open_as_it_is(&name, StoreConfig::new().deadline(deadline), next).await;
        }
        if fault == Fault::HistoryWithTtl && matches!(opened, Err(KvError::InvalidConfig { .. })) {
            opened = self.open_as_it_is(&name, StoreConfig::new().deadline(deadline), next).await;
        }
        let store = opened?;
        if fault == Fault::WritesAtOpening {
            store.put("opened", "value").await?;
        }
        Ok(if fault == Fault::ForgetsDeadline {
            store.with_deadline(Duration::from_secs(5) + Duration::from_nanos(1))
        } else {
            store
        })
    }

    async fn open_as_it_is(&self, name: &str, config: StoreConfig, next: &Next) -> KvResult<Store> {
        let operation = Operation::Open(name.to_owned(), config);
        let deadline = Deadline::after(Deadline::DEFAULT);
        let store = Store::try_from(next.call(Call { operation, deadline }).await?)?;
        let broken = reader::BrokenStore {
            inner: Arc::clone(store.backend()),
            fault: self.fault,
            memory: Mutex::default(),
            limit: store.max_value_size(),
        };
        Ok(FaultyStore::over(&store, &Arc::new(broken)))
    }

    fn reject_unclaimed(&self, config: &StoreConfig) -> KvResult<()> {
        config.validate()?;
        let asked = config.history.is_some_and(|versions| versions > 1)
            || config.max_age.flatten().is_some()
            || config.key_ttl == Some(true)
            || config.consistency == ReadConsistency::Leader;
        if asked { Err(unsupported("open")) } else { Ok(()) }
    }
}

fn unsupported(operation: &'static str) -> KvError {
    KvError::unsupported(operation, "this backend is modest")
}

/// Returns the subset of capabilities that [`Fault::Modest`] claims.
fn modest(all: ConnectionCapabilities) -> ConnectionCapabilities {
    let mut claimed = ConnectionCapabilities::default();
    claimed.write = all.write;
    claimed.max_history = 1;
    claimed
}

impl Hook for Broken {
    async fn call(self: &Arc<Self>, call: Call, next: &Next) -> KvResult<Answer> {
        let operation = call.operation.clone();
        match operation {
            Operation::Open(name, config) => self.open(name, config, next).await.map(Answer::from),
            Operation::ListStores if self.fault == Fault::ListForgets => {
                let all = KvStream::<String>::try_from(next.call(call).await?)?;
                let is_kept = |name: &KvResult<String>| {
                    std::future::ready(!matches!(name, Ok(name) if name.ends_with("-0")))
                };
                Ok(KvStream::new(all.filter(is_kept)).into())
            }
            Operation::DeleteStore(name) => match self.fault {
                Fault::DeleteStoreDoesNothing => Ok(().into()),
                fault => match next.call(call).await {
                    Err(KvError::StoreNotFound { .. }) if fault == Fault::DeleteStoreForgives => {
                        Ok(().into())
                    }
                    Err(KvError::InvalidStoreName { .. }) if fault == Fault::AnyName => {
                        Err(KvError::store_not_found(name))
                    }
                    result => result,
                },
            },
            Operation::Health if self.fault == Fault::NeverHealthy => {
                Err(KvError::unavailable("health", "not today"))
            }
            Operation::Shutdown => {
                let again = self.is_shut_down.swap(true, Ordering::SeqCst);
                match self.fault {
                    Fault::ShutdownDoesNothing => Ok(().into()),
                    Fault::ShutdownOnce if again => Err(KvError::closed("shutdown")),
                    _ => next.call(call).await,
                }
            }
            _ => next.call(call).await,
        }
    }

    fn capabilities(&self, all: ConnectionCapabilities) -> ConnectionCapabilities {
        let mut claimed = all;
        match self.fault {
            Fault::Modest | Fault::FalselyModest => claimed = modest(all),
            Fault::StoreClaimsMore => claimed.leader_reads = false,
            Fault::HistoryIsCut => claimed.max_history = 4,
            Fault::ClaimsToLast => (claimed.persistent, claimed.shared) = (true, true),
            _ => {}
        }
        claimed
    }
}
