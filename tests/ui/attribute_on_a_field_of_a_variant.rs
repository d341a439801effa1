use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.mode")]
enum Mode {
    Plain,
    Tls {
        #[kv(value)]
        verify: bool,
    },
}

fn main() {
    let _ = (Mode::key(), Mode::Plain.kv_key(), Mode::Tls { verify: true });
}
