use serde::Deserialize;
use shizuku_kv::StaticKeyIndexedValue;

#[derive(Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.database", codec = messagepack)]
struct Config;

fn main() {}
