use shizuku_kv::{KeyValue, Store, VersionToken};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn delete(store: &Store, version: VersionToken) {
    let _ = User::delete_atomically(store, version, 7).await;
}

fn main() {}
