use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", validate = check())]
struct Config;

fn check(_: &Config) -> Result<(), &'static str> {
    Ok(())
}

fn main() {
    let _ = (Config::key(), Config.kv_key(), check);
}
