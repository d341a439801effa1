//! A crate that depends on the library under another name. Its derives find that name in
//! `Cargo.toml`, so they need no `#[kv(crate = …)]`. A derive that does not find it does not
//! compile.

#![cfg(test)]

use kv::{KeyValue, StaticKeyIndexedValue};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.limits")]
struct Limits;

#[test]
fn derives_find_a_renamed_dependency() {
    assert_eq!(User { id: 7 }.kv_key().to_string(), "user.7");
    assert_eq!(Limits::key(), "config.limits");
}
