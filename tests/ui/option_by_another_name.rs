use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}", expires_in = "30s")]
struct User {
    id: u64,
}

fn main() {
    let _ = User { id: 7 }.kv_key();
}
