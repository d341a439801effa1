use shizuku_kv::{StaticKeyIndexedValue, Store};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config", bucket = "all-of-the-configurations-of-all-of-our-services-in-every-region-")]
struct Config;

async fn open() -> Option<Store> {
    Config::open(&shizuku_kv::connect("memory:").await.ok()?).await.ok()
}

fn main() {
    let _ = (Config::key(), Config::BUCKET, open);
}
