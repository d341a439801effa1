use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct User {
    id: u64,
}

fn main() {}
