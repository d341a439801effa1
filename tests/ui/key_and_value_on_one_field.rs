use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct Limit {
    #[kv(key, value)]
    most: String,
}

fn main() {
    let _ = Limit { most: String::new() }.kv_key();
}
