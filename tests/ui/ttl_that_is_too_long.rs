use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", ttl = "999999999999d")]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key(), Config::value_ttl());
}
