use serde::{Deserialize, Serialize};
use shizuku_kv::KeyValue;

#[derive(Serialize, Deserialize, KeyValue)]
#[kv(key = "user.{id}", codec = json)]
struct User {
    #[serde(skip)]
    id: u64,
    name: String,
}

fn main() {
    let _ = UserKey { id: 7 };
}
