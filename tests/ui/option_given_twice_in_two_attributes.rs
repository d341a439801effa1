use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database")]
#[kv(key = "config.databases")]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key());
}
