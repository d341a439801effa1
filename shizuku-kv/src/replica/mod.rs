//! Local copies of a bucket.

mod course;
mod memory;
mod storage;

pub use memory::MemoryStorage;
pub use storage::{Held, ReplicaPlace, ReplicaStorage, StorageError};
