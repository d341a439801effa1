use shizuku_kv::{Key as UserKey, KeyValue};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

fn main() {
    let _ = (UserKey::new("a"), User { id: 7 });
}
