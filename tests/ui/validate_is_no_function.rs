use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}", validate = RULE)]
struct User {
    id: u64,
}

const RULE: &str = "at least 1";

fn main() {}
