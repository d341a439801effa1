use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{0}.{2}")]
struct User(String, u64);

fn main() {
    let _ = (UserKey::PREFIX, User(String::new(), 7).kv_key());
}
