use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
struct User {
    id: u64,
}

async fn delete(store: &Store) {
    let _ = User::delete_anyway(store, "ann").await;
}

fn main() {
    let _ = (User { id: 1 }.kv_key(), delete);
}
