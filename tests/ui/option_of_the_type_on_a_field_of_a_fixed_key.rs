use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.database")]
struct Config {
    #[kv(validate = str::is_empty)]
    url: String,
}

fn main() {
    let _ = (Config::key(), Config { url: String::new() }.kv_key());
}
