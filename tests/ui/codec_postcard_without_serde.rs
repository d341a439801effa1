use shizuku_kv::{PostcardByteDes, PostcardByteSer};

#[derive(PostcardByteSer, PostcardByteDes)]
struct Config;

fn main() {}
