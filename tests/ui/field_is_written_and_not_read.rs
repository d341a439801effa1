use serde::{Deserialize, Serialize};
use shizuku_kv::StaticKeyIndexedValue;

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.login", codec = json)]
struct Login {
    user: String,
    #[serde(skip_serializing)]
    password: String,
}

fn main() {}
