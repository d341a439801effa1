use shizuku_kv::KeyValue;

struct UserKey;

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

fn main() {
    let _ = (UserKey, User { id: 7 });
}
