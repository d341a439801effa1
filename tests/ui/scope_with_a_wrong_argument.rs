use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{tenant}.{id}")]
struct User {
    tenant: String,
    id: u64,
}

fn main() {
    let _ = UserKey::scope_tenant(7);
}
