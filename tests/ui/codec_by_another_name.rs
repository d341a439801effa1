use shizuku_kv::StaticKeyIndexedValue;

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", codec = msgpack)]
struct Config;

fn main() {
    let _ = Config::key();
}
