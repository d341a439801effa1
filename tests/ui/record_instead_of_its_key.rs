use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn delete(store: &Store, user: User) {
    let _ = User::delete_anyway(store, user).await;
}

fn main() {}
