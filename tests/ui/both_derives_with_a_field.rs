use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue, KeyValue)]
struct User {
    #[kv(key)]
    id: u64,
}

fn main() {}
