use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{tenant}.{id}")]
struct User {
    tenant: Option<String>,
    id: u64,
}

fn main() {
    let key = UserKey { tenant: None, id: 7 };
    let _ = (key == UserKey::from((None, 7)), UserKey::scope_tenant(None));
}
