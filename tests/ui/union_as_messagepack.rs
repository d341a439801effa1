use shizuku_kv::{ByteSerialize, MessagePackByteSer};

#[derive(MessagePackByteSer)]
union Number {
    id: u64,
}

fn main() {
    let _ = Number { id: 7 }.to_bytes();
}
