use shizuku_kv::{KeyValue, StaticKeyIndexedValue, Store};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.{name}", bucket = "configs")]
struct Config;

async fn delete(store: &Store) {
    let _ = (Config::delete(store).await, Config::purge(store, Config::key()).await);
}

fn main() {
    let _ = (Config::BUCKET, Config.kv_key(), delete);
}
