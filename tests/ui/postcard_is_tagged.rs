use serde::{Deserialize, Serialize};
use shizuku_kv::StaticKeyIndexedValue;

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.limit", codec = postcard)]
#[serde(tag = "kind")]
enum Limit {
    Number { number: u8 },
}

fn main() {}
