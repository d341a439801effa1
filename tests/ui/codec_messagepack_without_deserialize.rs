use serde::Serialize;
use shizuku_kv::KeyValue;

#[derive(Serialize, KeyValue)]
#[kv(key = "user.{id}", codec = messagepack)]
struct User {
    id: u64,
}

fn main() {}
