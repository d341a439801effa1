use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct User {
    #[kv()]
    id: u64,
}

fn main() {
    let _ = User { id: 7 }.kv_key();
}
