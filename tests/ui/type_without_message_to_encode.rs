use shizuku_kv::ProtobufByteSer;

#[derive(ProtobufByteSer)]
struct Config;

fn main() {}
