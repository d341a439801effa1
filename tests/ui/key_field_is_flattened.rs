use serde::{Deserialize, Serialize};
use shizuku_kv::KeyValue;

#[derive(Serialize, Deserialize, KeyValue)]
#[kv(key = "job.{id}", codec = json)]
struct Job {
    #[serde(flatten)]
    id: String,
    runs: u32,
}

fn main() {}
