use shizuku_kv::StaticKeyIndexedValue;

#[derive(StaticKeyIndexedValue)]
#[kv(key = "config.limits", validate = Limits::check)]
struct Limits;

impl Limits {
    fn check(&self) -> Result<(), String> {
        Err("no".to_owned())
    }
}

fn main() {}
