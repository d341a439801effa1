use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
struct Limit {
    #[kv(key)]
    name: String,
    #[kv(value)]
    most: u32,
}

async fn write(limit: &Limit, store: &Store) {
    let _ = limit.write_to_anyway(store).await;
}

fn main() {}
