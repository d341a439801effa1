use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct Limit {
    #[kv(key)]
    name: String,
    #[kv(value)]
    limit: String,
    note: String,
}

fn main() {}
