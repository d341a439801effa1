use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv()]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key());
}
