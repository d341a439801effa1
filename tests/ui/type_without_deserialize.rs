use shizuku_kv::JsonByteDes;

#[derive(JsonByteDes)]
struct Config;

fn main() {}
