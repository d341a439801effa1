use serde::Deserialize;
use shizuku_kv::{JsonByteDes, KeyValue, KeyValueWrite, Store};

#[derive(Deserialize, JsonByteDes, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn create(user: &User, store: &Store) {
    let _ = user.create_write(store).await;
}

fn main() {}
