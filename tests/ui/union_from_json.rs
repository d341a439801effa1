use shizuku_kv::{ByteDeserialize, Bytes, JsonByteDes};

#[derive(JsonByteDes)]
union Number {
    id: u64,
}

fn main() {
    let number = Number::from_bytes(&Bytes::new());
    let _ = number.map(|number| unsafe { number.id });
}
