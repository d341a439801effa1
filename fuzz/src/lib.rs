//! What is tried with arbitrary bytes: everything of the library that reads bytes which something else may have written.
//!
//! Each module has `run`, which takes any bytes and panics where a promise is broken, and `examples`, with which a search
//! begins. `fuzz_targets/` gives them to libFuzzer; `tests/tests/fuzz_targets.rs` compiles the same files and runs each for
//! a moment in every test run.

pub mod cursor;
pub mod key;
pub mod log;
mod reading;
pub mod version;
