use shizuku_kv::KeyValue;

#[derive(Clone)]
struct Id(u64);

#[derive(KeyValue)]
struct User {
    #[kv(key)]
    id: Id,
}

fn main() {}
