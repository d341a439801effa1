use serde::Deserialize;
use shizuku_kv::{JsonByteDes, KeyValue, KeyValueWrite, Store};

#[derive(Deserialize, JsonByteDes, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn write(users: &[User], store: &Store) {
    let _ = User::write_many(store, users).await;
}

fn main() {}
