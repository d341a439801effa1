//! Bad input: rejected with an error that names the fault and the way out. The conformance suite
//! checks on every backend that it is rejected. Cases that do not depend on the backend use memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod decoding;
mod keys;
mod settings;
mod swaps;
mod urls;

use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;

use shizuku_kv::{Connection, KeyValue, KvError, KvWriteError, Store, connect};
use shizuku_kv_tests::unique;

/// Part of every value that must not be shown.
const SECRET: &str = "hunter2";

async fn new_store(connection: &Arc<dyn Connection>) -> Store {
    connection.store(&unique("bad-input")).await.unwrap()
}

async fn memory_store() -> Store {
    new_store(&connect("memory:").await.unwrap()).await
}

#[track_caller]
fn store_error(error: KvWriteError) -> KvError {
    match error {
        KvWriteError::Store(error) => error,
        error => panic!("{error:?}"),
    }
}

/// A record with an arbitrary string as its key.
#[derive(Debug, PartialEq, KeyValue)]
struct Note(#[kv(key)] String, #[kv(value)] String);

/// Returns the text of an error and of its sources.
fn shown(error: &dyn Error) -> String {
    let mut shown = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        shown.push_str(&format!("{error}\n{error:?}\n{error:#?}\n"));
        next = error.source();
    }
    shown
}
