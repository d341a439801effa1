//! Targets for arbitrary bytes: everything in the library that reads bytes from other writers.
//!
//! Each module has `run`, which accepts any bytes and panics if a guarantee is broken, and
//! `examples`, with which a search begins. `fuzz_targets/` passes them to libFuzzer.
//! `tests/tests/memory/fuzz_targets.rs` compiles the same files and runs each for a moment in every
//! test run.

pub mod cursor;
pub mod key;
pub mod log;
mod reading;
pub mod version;
