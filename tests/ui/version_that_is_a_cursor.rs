use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValue, Store, WatchCursor};

#[derive(Serialize, JsonByteSer, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn write(user: &User, store: &Store, cursor: WatchCursor) {
    let _ = user.write_to_atomically(store, cursor).await;
}

fn main() {}
