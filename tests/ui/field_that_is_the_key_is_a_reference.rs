use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct User {
    #[kv(key)]
    id: &'static str,
}

fn main() {}
