use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}", key_type = keys::Id)]
struct User {
    id: u64,
}

fn main() {
    let _ = User { id: 7 }.kv_key();
}
