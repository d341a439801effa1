use serde::Serialize;
use shizuku_kv::{JsonByteSer, StaticKeyIndexedValue, Store};

#[derive(Serialize, JsonByteSer, StaticKeyIndexedValue)]
#[kv(key = "config.limits")]
struct Limits;

async fn read(store: &Store) {
    let _ = Limits::read(store).await;
}

fn main() {}
