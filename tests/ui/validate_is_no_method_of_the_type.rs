use shizuku_kv::StaticKeyIndexedValue;

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.limits", validate = Self::check)]
struct Limits;

fn main() {}
