use serde::{Deserialize, Serialize};
use shizuku_kv::{JsonByteDes, JsonByteSer, StaticKeyIndexedValue, Store};

#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
struct Config;

async fn read(store: &Store) {
    let _ = Config::read(store).await;
}

fn main() {
    let _ = (Config::key(), read);
}
