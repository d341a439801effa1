use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
#[kv(codec = json)]
struct Limit {
    #[kv(key)]
    name: String,
    #[kv(value)]
    most: String,
}

async fn read(store: &Store) {
    let _ = Limit::read_from(store, "connections").await;
}

fn main() {
    let _ = read;
}
