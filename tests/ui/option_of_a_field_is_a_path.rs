use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct User {
    #[kv(user::key)]
    id: u64,
}

fn main() {
    let _ = User { id: 7 }.kv_key();
}
