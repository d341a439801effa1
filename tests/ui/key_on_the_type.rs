use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key)]
struct User {
    id: u64,
}

fn main() {
    let _ = User { id: 7 }.kv_key();
}
