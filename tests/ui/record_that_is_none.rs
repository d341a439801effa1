use shizuku_kv::KeyValue;

struct User {
    id: u64,
}

fn store<T: KeyValue>(_: &T) {}

fn main() {
    store(&User { id: 7 });
}
