use serde::Deserialize;
use shizuku_kv::{JsonByteDes, KeyValue, KeyValueRead, Store};

#[derive(Deserialize, JsonByteDes, KeyValue)]
#[kv(key = "user.{tenant}.{id}")]
struct User {
    tenant: String,
    id: u64,
}

async fn list(store: &Store) {
    let _ = User::list_scope(store, ("acme", 7)).try_collect().await;
}

fn main() {}
