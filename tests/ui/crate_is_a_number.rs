use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", crate = 7)]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key());
}
