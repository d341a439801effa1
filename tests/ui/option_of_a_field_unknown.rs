use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
struct Limit {
    #[kv(key)]
    name: String,
    #[kv(valeu)]
    most: String,
}

async fn delete(store: &Store) {
    let _ = Limit::delete_anyway(store, "connections").await;
}

fn main() {
    let _ = delete;
}
