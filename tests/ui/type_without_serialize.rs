use shizuku_kv::JsonByteSer;

#[derive(JsonByteSer)]
struct Config;

fn main() {}
