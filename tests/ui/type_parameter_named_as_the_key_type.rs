use serde::{Deserialize, Serialize};
use shizuku_kv::{JsonByteDes, JsonByteSer, KeyValue};

#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
#[kv(key = "g.{id}")]
struct G<GKey> {
    id: u64,
    inner: GKey,
}

fn main() {}
