use shizuku_kv::{KeyValue, Store};

#[derive(KeyValue)]
#[kv(key = "user.{tenant}.{id}.{colour}", bucket = "users")]
struct User {
    tenant: String,
    id: u64,
}

async fn delete(store: &Store) {
    let _ = User::delete_anyway(store, ("acme", 7)).await;
}

fn main() {
    let key = UserKey { tenant: "acme".to_owned(), id: 7 };
    let scopes = (UserKey::scope(), UserKey::scope_tenant("acme"));
    let _ = (key == UserKey::from(("acme", 7)), scopes, User::BUCKET, delete);
}
