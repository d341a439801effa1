use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.data base")]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key());
}
