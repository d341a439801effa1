use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
struct User {
    #[kv(key)]
    tenant: u64,
    #[kv(key)]
    id: u64,
}

async fn delete(store: &Store) {
    let _ = User::delete_anyway(store, 7_u64).await;
}

fn main() {
    let key: u64 = User { tenant: 1, id: 7 }.kv_key();
    let _ = (key, delete);
}
