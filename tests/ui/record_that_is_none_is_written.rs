use shizuku_kv::{KeyValue, Store};

struct User {
    id: u64,
}

async fn write(user: &User, store: &Store) {
    let _ = user.write_to_anyway(store).await;
}

fn main() {}
