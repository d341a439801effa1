//! The number of allocations of single calls.
//!
//! The counting allocator is that of a crate, which counts for the thread. So these tests cannot
//! share a binary with those that measure the memory of their process.

mod bulk;
mod live;
