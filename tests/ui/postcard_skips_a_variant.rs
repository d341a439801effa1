use serde::{Deserialize, Serialize};
use shizuku_kv::{PostcardByteDes, PostcardByteSer, StaticKeyIndexedValue};

#[derive(Serialize, Deserialize, PostcardByteSer, PostcardByteDes, StaticKeyIndexedValue)]
#[kv(key = "config.mode")]
enum Mode {
    A,
    #[serde(skip)]
    B,
    C,
    D,
}

fn main() {}
