use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct Reading(#[kv(key)] f64, #[kv(value)] String);

fn main() {}
