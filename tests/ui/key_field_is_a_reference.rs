use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{name}.{id}")]
struct User {
    name: &'static str,
    id: u64,
}

fn main() {
    let key = UserKey { name: "ann", id: 7 };
    let _ = (key == UserKey::from(("ann", 7)), UserKey::scope_name("ann"));
}
