use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{tennant}.{id}")]
struct User {
    tenant: String,
    id: u64,
}

fn main() {}
