use serde::{Deserialize, Serialize};
use shizuku_kv::{StaticKeyIndexedValue, Store};

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.database", codec = jsno)]
struct Config;

async fn read(store: &Store) {
    let _ = Config::read(store).await;
}

fn main() {
    let _ = (Config::key(), read);
}
