use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}"; bucket = "users")]
struct User {
    id: u64,
}

fn main() {
    let _ = UserKey { id: 7 };
}
