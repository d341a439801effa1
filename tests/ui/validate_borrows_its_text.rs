use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}", validate = check)]
struct User {
    id: u64,
}

fn check(_: &User) -> Result<(), &str> {
    Err("never")
}

fn main() {}
