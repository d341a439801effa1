use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
struct User {
    #[kv]
    id: String,
}

async fn delete(store: &Store) {
    let _ = User::delete_anyway(store, "ann").await;
}

fn main() {
    let _ = delete;
}
