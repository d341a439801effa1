use serde::{Deserialize, Serialize};
use shizuku_kv::StaticKeyIndexedValue;

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.limit", codec = json)]
#[serde(tag = "kind")]
enum Limit {
    Number { number: u128 },
}

fn main() {}
