use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.all")]
struct User {
    id: u64,
}

fn main() {}
