#[derive(KeyValue)]
#[kv(key = "user.{tenant}.{id}")]
pub struct User {
    id: u64,
    tenant: String,
    name: String,
}
