use serde::{Deserialize, Serialize};
use shizuku_kv::{JsonByteDes, JsonByteSer};

#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes)]
struct Range(#[serde(skip_serializing_if = "Option::is_none")] Option<u8>, u8);

fn main() {}
