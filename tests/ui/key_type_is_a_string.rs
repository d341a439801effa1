use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key_type = "Id", key = "user.{id}")]
struct User {
    id: u64,
}

fn main() {
    let key = Id { id: 7 };
    let _ = (key == Id::from(7), Id::scope());
}
