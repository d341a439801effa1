use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "number")]
union Number {
    id: u64,
}

fn main() {
    let _ = (Number::key(), Number { id: 7 }.kv_key());
}
