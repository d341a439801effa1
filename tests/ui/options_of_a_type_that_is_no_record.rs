use serde::{Deserialize, Serialize};
use shizuku_kv::{JsonByteDes, JsonByteSer};

#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes)]
#[kv(validate = Limits::check)]
struct Limits {
    most: u32,
}

impl Limits {
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

fn main() {}
