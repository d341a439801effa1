use serde::{Deserialize, Serialize};
use shizuku_kv::KeyValue;

#[derive(Serialize, Deserialize, KeyValue)]
#[kv(codec = json)]
struct Job {
    #[kv(key)]
    #[serde(skip)]
    id: String,
    runs: u32,
}

fn main() {}
