use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "g.{id}", key_type = Id)]
struct G<Id> {
    id: u64,
    inner: Id,
}

fn main() {
    let _ = G { id: 7, inner: () }.kv_key();
}
