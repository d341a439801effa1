use serde::Deserialize;
use shizuku_kv::{JsonByteDes, KeyValue, Store};

#[derive(Deserialize, JsonByteDes, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn write(user: &User, store: &Store) {
    let _ = user.write_to_anyway(store).await;
}

fn main() {}
