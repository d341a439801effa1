use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}", key_serde = true)]
struct User {
    id: u64,
}

fn text(key: &UserKey) -> String {
    fn text<T: serde::Serialize>(_: &T) -> String {
        String::new()
    }
    text(key)
}

fn main() {
    let _ = text(&UserKey::from(7));
}
