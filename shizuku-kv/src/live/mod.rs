//! Values that stay current: after the first read, always the newest good value.
//!
//! [`Live`] follows one record in a task of its own, over a watch that recovers by itself.
//! [`load`](Live::load) costs as much as loading an `Arc`, and never waits. [`LiveMap`] does the
//! same for all records of a type or a scope.

mod drive;
mod map;
mod open;
mod panics;
mod shared;
mod snapshot;
mod status;
mod stream;
mod traits;
mod value;

pub use map::{
    LiveMap, LiveMapChange, LiveMapChanges, LiveMapSnapshot, LiveMapStatus, LiveMapSyncState,
    LiveRejection,
};
pub use snapshot::{LiveRef, LiveSnapshot};
pub use status::{LiveStatus, LiveSyncState};
pub use stream::LiveStream;
pub use traits::{LiveRead, LiveStatic};
pub use value::Live;
