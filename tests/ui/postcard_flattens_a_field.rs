use serde::{Deserialize, Serialize};
use shizuku_kv::{PostcardByteDes, PostcardByteSer};
use std::collections::HashMap;

#[derive(Serialize, Deserialize, PostcardByteSer, PostcardByteDes)]
struct Labels {
    #[serde(flatten)]
    all: HashMap<String, String>,
}

fn main() {}
