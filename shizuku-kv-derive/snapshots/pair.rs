#[derive(KeyValue)]
struct Limit(#[kv(key)] String, #[kv(value)] u32);
