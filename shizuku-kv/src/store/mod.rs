//! The store contract: the promises of a store on every backend.
//!
//! [`Store`] is the handle of users. A backend implements the traits in [`contract`].

mod attached;
mod backoff;
mod capabilities;
mod config;
pub mod contract;
mod cursor;
mod deadline;
mod entry;
mod error;
mod error_constructors;
mod fence;
mod figures;
mod grammar;
mod handle;
mod handle_fenced;
mod handle_ttl;
mod key;
mod key_set;
mod metadata;
mod open_stores;
mod readers;
mod serde_forms;
mod stream;
mod suspend_aware_instant;
pub(crate) mod timer;
mod version;
mod write;

pub(crate) use attached::Attached;
pub(crate) use backoff::backoff;
pub use capabilities::ConnectionCapabilities;
pub use config::{ReadConsistency, StorageType, StoreConfig, check_store_name};
pub use contract::{Connection, KvFenced, KvReader, KvResult, KvStore, KvTtl, KvWatcher, KvWriter};
pub use cursor::WatchCursor;
pub use deadline::Deadline;
pub(crate) use deadline::in_runtime;
pub use entry::{KvEntry, KvOperation, KvUpdate};
pub use error::{ConfigDifference, ErrorSource, KvError, KvLimit};
pub use fence::FencingToken;
pub use figures::StoreFigures;
pub(crate) use grammar::{MAX_KEY_LEN, check_key};
pub use handle::Store;
pub use handle_fenced::StoreFenced;
pub use handle_ttl::StoreTtl;
pub(crate) use handle_ttl::{check_ttl, ttl_fault};
pub use key::{IntoKey, Key, WatchScope};
pub(crate) use key_set::KeySet;
pub use metadata::Metadata;
pub use open_stores::OpenStores;
pub(crate) use readers::Readers;
pub use stream::{KvStream, Watch, WatchLink};
pub(crate) use suspend_aware_instant::SuspendAwareInstant;
pub use version::VersionToken;
pub use write::{Atomicity, Write, WriteCondition, WriteOperation};
