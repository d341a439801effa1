use shizuku_kv::{KeyValue, KeyValueWrite, Store};

#[derive(KeyValue)]
struct Motto {
    #[kv(key)]
    name: String,
    #[kv(value)]
    text: String,
}

async fn change(store: &Store) {
    let _ = Motto::modify(store, "ours", |_| Err::<Option<Motto>, _>(String::new())).await;
}

fn main() {}
