use serde::Deserialize;
use shizuku_kv::{JsonByteDes, KeyValue, KeyValueWrite, Store};

#[derive(Deserialize, JsonByteDes, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn modify(store: &Store) {
    let _ = User::modify(store, 7, |user| user).await;
}

fn main() {}
