use serde::{Deserialize, Serialize};
use shizuku_kv::KeyValue;

#[derive(Serialize, Deserialize, KeyValue)]
#[kv(codec = json)]
struct Job {
    #[kv(key)]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    id: String,
    runs: u32,
}

fn main() {}
