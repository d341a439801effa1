use shizuku_kv::{ByteSerialize, KeyValue};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

fn store<T: KeyValue<Value: ByteSerialize>>(_: &T) {}

fn main() {
    store(&User { id: 7 });
}
