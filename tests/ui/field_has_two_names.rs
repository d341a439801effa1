use serde::{Deserialize, Serialize};
use shizuku_kv::StaticKeyIndexedValue;

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.login", codec = messagepack)]
struct Login {
    #[serde(rename(serialize = "login", deserialize = "name"))]
    user: String,
}

fn main() {}
