use shizuku_kv::{StaticKeyIndexedValue, Store};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database", bucket = configs)]
struct Config;

async fn open() -> Option<Store> {
    Config::open(&shizuku_kv::connect("memory:").await.ok()?).await.ok()
}

fn main() {
    let _ = (Config::key(), Config::BUCKET, open);
}
