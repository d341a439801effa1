use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
struct Limit {
    #[kv(key)]
    name: String,
    #[kv(value)]
    least: String,
    #[kv(value)]
    most: String,
}

async fn read(store: &Store) {
    let _ = Limit::read_from(store, "connections").await;
}

fn main() {
    let _ = read;
}
