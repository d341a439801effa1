use shizuku_kv::StaticKeyIndexedValue;

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", crate = shizuku)]
struct Config;

fn main() {}
