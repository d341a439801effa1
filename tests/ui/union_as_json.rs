use shizuku_kv::{ByteSerialize, JsonByteSer};

#[derive(JsonByteSer)]
union Number {
    id: u64,
}

fn main() {
    let _ = Number { id: 7 }.to_bytes();
}
