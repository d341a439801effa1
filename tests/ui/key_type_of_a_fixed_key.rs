use shizuku_kv::StaticKeyIndexedValue;

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", key_type = Name)]
struct Config;

fn look(_: Name) {}

fn main() {
    look(Config::key());
}
