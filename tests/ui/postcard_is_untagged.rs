use serde::{Deserialize, Serialize};
use shizuku_kv::StaticKeyIndexedValue;

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.limit", codec = postcard)]
#[serde(untagged)]
enum Limit {
    Number(u8),
    Text(String),
}

fn main() {}
