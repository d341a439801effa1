use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

const KEY: &str = "config.database";

#[derive(StaticKeyIndexedValue)]
#[kv(key = KEY)]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key(), KEY);
}
