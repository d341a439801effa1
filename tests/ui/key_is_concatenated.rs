use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = concat!("config.", "database"))]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key());
}
