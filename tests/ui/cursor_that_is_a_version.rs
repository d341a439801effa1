use serde::Deserialize;
use shizuku_kv::{JsonByteDes, KeyValue, KeyValueRead, Store, VersionToken};

#[derive(Deserialize, JsonByteDes, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn watch(store: &Store, version: VersionToken) {
    let _ = User::watch_scope_from(store, UserKey::scope(), version).await;
}

fn main() {}
