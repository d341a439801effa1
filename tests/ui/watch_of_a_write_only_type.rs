use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValueRead, StaticKeyIndexedValue, Store};

#[derive(Serialize, JsonByteSer, StaticKeyIndexedValue)]
#[kv(key = "config.limits")]
struct Limits;

async fn watch(store: &Store) {
    let limits = Limits::watch(store, Limits::key()).await;
    drop(limits);
}

fn main() {
    let _ = watch;
}
