use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    #[kv(key)]
    id: u64,
}

fn main() {
    let key = UserKey { id: 7 };
    let _ = (key == UserKey::from(7), UserKey::scope());
}
