use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn delete(store: &Store) {
    let _ = User::delete_anyway(store, "user.7").await;
}

fn main() {}
