use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
#[kv(value)]
struct Limit {
    #[kv(key)]
    name: String,
    most: u32,
}

async fn delete(store: &Store) {
    let _ = Limit::delete_anyway(store, "connections").await;
}

fn main() {
    let _ = delete;
}
