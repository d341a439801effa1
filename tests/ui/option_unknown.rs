use serde::{Deserialize, Serialize};
use shizuku_kv::{JsonByteDes, JsonByteSer, StaticKeyIndexedValue};

#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
#[kv(kee = "config.database")]
struct Config;

fn main() {
    let _ = Config::key();
}
