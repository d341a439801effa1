#[derive(KeyValue)]
#[kv(key = "user.{tennant}..{id}", bucket = "users")]
struct User {
    id: u64,
    tenant: String,
}
