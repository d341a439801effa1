use shizuku_kv::StaticKeyIndexedValue;

#[derive(StaticKeyIndexedValue)]
#[kv(key_serde, key = "config.database")]
struct Config;

fn main() {
    let _ = Config::key();
}
