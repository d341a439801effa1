use serde::Deserialize;
use shizuku_kv::{JsonByteDes, KeyValue, Store};

#[derive(Deserialize, JsonByteDes, KeyValue)]
#[kv(key = "user.{tenant}.{id}")]
struct User {
    tenant: String,
    id: u64,
}

async fn read(store: &Store) {
    let _ = User::read_from(store, (7, "acme")).await;
}

fn main() {}
