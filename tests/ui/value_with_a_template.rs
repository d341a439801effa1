use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
#[kv(key = "limit.{name}")]
struct Limit {
    name: String,
    #[kv(value)]
    most: String,
}

async fn read(store: &Store) {
    let _ = Limit::read_from(store, LimitKey { name: "connections".to_owned() }).await;
}

fn main() {
    let _ = read;
}
