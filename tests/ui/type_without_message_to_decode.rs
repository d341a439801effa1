use shizuku_kv::ProtobufByteDes;

#[derive(ProtobufByteDes)]
struct Config;

fn main() {}
