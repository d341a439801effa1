//! The store contract: what a store promises, whatever the backend.
//!
//! [`Store`] is what users hold. The traits in [`contract`] are what a backend implements.

mod backoff;
mod capabilities;
mod config;
pub mod contract;
mod cursor;
mod deadline;
mod entry;
mod error;
mod fence;
mod figures;
mod grammar;
mod handle;
mod handle_fenced;
mod handle_ttl;
mod key;
mod key_set;
mod moment;
mod open_stores;
mod pulse;
mod shared;
mod stream;
pub(crate) mod timer;
mod version;

pub(crate) use backoff::backoff;
pub use capabilities::ConnectionCapabilities;
pub use config::{ReadConsistency, StorageType, StoreConfig, check_store_name};
pub use contract::{Connection, KvFenced, KvReader, KvResult, KvStore, KvTtl, KvWatcher, KvWriter};
pub use cursor::WatchCursor;
pub use deadline::Deadline;
pub(crate) use deadline::in_runtime;
pub use entry::{KvEntry, KvOperation, KvUpdate};
pub use error::{ConfigDifference, ErrorSource, KvError};
pub use fence::FencingToken;
pub use figures::StoreFigures;
pub(crate) use figures::{COMPARE_EVERY, Course, Doubt, Recent};
pub(crate) use grammar::{MAX_KEY_LEN, check_key};
pub use handle::Store;
pub use handle_fenced::StoreFenced;
pub use handle_ttl::StoreTtl;
pub(crate) use handle_ttl::check_ttl;
pub use key::{IntoKey, Key, WatchScope};
pub(crate) use key_set::KeySet;
pub(crate) use moment::Moment;
pub use open_stores::OpenStores;
pub(crate) use pulse::Pulse;
pub(crate) use shared::{Attached, Follower, Following, Upkeep};
pub use stream::{KvStream, Watch, WatchLink};
pub use version::VersionToken;
