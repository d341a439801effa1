use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValue, Store};

#[derive(Serialize, JsonByteSer, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn write(user: &User, store: &Store) {
    let _ = user.write_to_atomically(store, 7_u64).await;
}

fn main() {}
