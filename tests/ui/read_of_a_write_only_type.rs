use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValue, StaticKeyIndexedValue, Store};

#[derive(Serialize, JsonByteSer, StaticKeyIndexedValue)]
#[kv(key = "config.limits")]
struct Limits;

fn read(store: &Store) {
    drop(Limits::read_from(store, Limits::key()));
}

fn main() {
    let _ = read;
}
