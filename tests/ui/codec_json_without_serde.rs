use shizuku_kv::StaticKeyIndexedValue;

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", codec = json)]
struct Config;

fn main() {}
