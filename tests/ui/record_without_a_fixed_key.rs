use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

fn only<T: StaticKeyIndexedValue>() {}

fn main() {
    only::<User>();
}
