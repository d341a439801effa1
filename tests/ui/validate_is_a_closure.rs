use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", validate = |config| Ok(()))]
struct Config;

fn main() {
    let _ = (Config::key(), Config.kv_key());
}
