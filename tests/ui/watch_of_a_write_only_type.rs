use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValueRead, StaticKeyIndexedValue, Store};

#[derive(Serialize, JsonByteSer, StaticKeyIndexedValue)]
#[kv(key = "config.limits")]
struct Limits;

fn watch(store: &Store) {
    drop(Limits::watch(store, Limits::key()));
}

fn main() {
    let _ = watch;
}
