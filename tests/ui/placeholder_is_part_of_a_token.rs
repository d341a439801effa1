use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.v{id}")]
struct User {
    id: u64,
}

fn main() {}
