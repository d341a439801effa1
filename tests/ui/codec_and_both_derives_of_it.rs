use serde::{Deserialize, Serialize};
use shizuku_kv::{JsonByteDes, JsonByteSer, StaticKeyIndexedValue};

#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
#[kv(key = "config.database", codec = json)]
struct Config;

fn main() {
    let _ = Config::key();
}
