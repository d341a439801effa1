use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue, KeyValue)]
#[kv(key = "config.database")]
struct Config;

fn main() {}
