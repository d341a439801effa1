use shizuku_kv::{KeyValue, StaticKeyIndexedValue, Store};

#[derive(StaticKeyIndexedValue)]
#[kv(bucket = "configs")]
struct Config;

async fn open() -> Option<Store> {
    Config::open(&shizuku_kv::connect("memory:").await.ok()?).await.ok()
}

fn main() {
    let _ = (Config::key(), Config.kv_key(), open);
}
