use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
#[kv(key = "user.{id}", bucket = "my.users")]
struct User {
    id: u64,
}

async fn open() -> Option<Store> {
    User::open(&shizuku_kv::connect("memory:").await.ok()?).await.ok()
}

fn main() {
    let key = UserKey { id: 7 };
    let _ = (key == UserKey::from(7), User::BUCKET, open);
}
