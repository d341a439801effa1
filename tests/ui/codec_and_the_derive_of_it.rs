use serde::{Deserialize, Serialize};
use shizuku_kv::{JsonByteSer, StaticKeyIndexedValue};

#[derive(Serialize, Deserialize, JsonByteSer, StaticKeyIndexedValue)]
#[kv(key = "config.database", codec = json)]
struct Config;

fn main() {
    let _ = Config::key();
}
