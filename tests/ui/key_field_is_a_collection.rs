use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{groups}")]
struct User {
    groups: Vec<String>,
}

fn main() {
    let key = UserKey { groups: Vec::new() };
    let _ = key == UserKey::from(Vec::new());
}
