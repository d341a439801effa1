use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.mode")]
enum Mode {
    #[kv(key = "config.mode.plain")]
    Plain,
    Tls,
}

fn main() {
    let _ = (Mode::key(), Mode::Plain.kv_key(), Mode::Tls);
}
