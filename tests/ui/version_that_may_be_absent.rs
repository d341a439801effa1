use shizuku_kv::{KeyValue, Store, VersionToken};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn delete(store: &Store, version: Option<VersionToken>) {
    let _ = User::delete_atomically(store, 7, version).await;
}

fn main() {}
