use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValue, KeyValueWrite, Store};

#[derive(Serialize, JsonByteSer, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn modify(store: &Store) {
    let _ = User::modify(store, 7, |user| user).await;
}

fn main() {}
