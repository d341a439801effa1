use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(KeyValue, StaticKeyIndexedValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

fn main() {}
