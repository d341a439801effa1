use shizuku_kv::{KeyValue, Store, TypedEntry};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

async fn delete(store: &Store, user: TypedEntry<User>) {
    let _ = User::delete_atomically(store, 7, user).await;
}

fn main() {}
