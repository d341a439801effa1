use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValue, KeyValueRead, Store};

#[derive(Serialize, JsonByteSer, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn list(store: &Store) {
    let _ = User::list(store).try_collect().await;
}

fn main() {}
