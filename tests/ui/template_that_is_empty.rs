use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
#[kv(key = "", bucket = "users")]
struct User {
    id: u64,
}

async fn open() -> Option<Store> {
    User::open(&shizuku_kv::connect("memory:").await.ok()?).await.ok()
}

fn look(_: UserKey) {}

fn main() {
    look(User { id: 1 }.kv_key());
    let _ = open;
}
