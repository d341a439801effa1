use serde::{Deserialize, Serialize};
use shizuku_kv::StaticKeyIndexedValue;

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.limits", codec = postcard)]
struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    least: Option<u8>,
    most: u8,
}

fn main() {}
