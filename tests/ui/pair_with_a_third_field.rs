use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
struct Limit {
    #[kv(key)]
    id: u64,
    #[kv(value)]
    limit: String,
    note: String,
}

async fn read(store: &Store) {
    let limit = Limit::read_from(store, 7_u64).await;
    let key: u64 = limit.unwrap().unwrap().kv_key();
    drop(key);
}

fn main() {
    let _ = read;
}
