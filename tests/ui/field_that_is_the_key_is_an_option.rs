use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct User {
    #[kv(key)]
    id: Option<u64>,
}

fn main() {}
