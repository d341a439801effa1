use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValue, StaticKeyIndexedValue, Store};

#[derive(Serialize, JsonByteSer, StaticKeyIndexedValue)]
#[kv(key = "config.limits")]
struct Limits;

async fn read(store: &Store) {
    let limits = Limits::read_from(store, Limits::key()).await;
    drop(limits);
}

fn main() {
    let _ = read;
}
