use serde::Deserialize;
use shizuku_kv::JsonByteDes;

#[derive(Deserialize, JsonByteDes)]
struct Config<'a> {
    url: &'a str,
}

fn main() {}
