use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}", codec = protobuf)]
struct User {
    id: u64,
}

fn main() {}
