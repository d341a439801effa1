use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
    #[kv(ttl = "30s")]
    name: String,
}

fn main() {
    let key = UserKey { id: 7 };
    let _ = (key == UserKey::from(7), UserKey::scope());
}
