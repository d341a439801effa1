use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", ttl = "1.5h")]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key(), Config::value_ttl());
}
