use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(kv::key = "user.{id}")]
struct User {
    id: u64,
}

fn main() {
    let _ = User { id: 7 }.kv_key();
}
