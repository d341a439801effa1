use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "number.{id}")]
union Number {
    id: u64,
}

fn main() {
    let _ = Number { id: 7 }.kv_key();
}
