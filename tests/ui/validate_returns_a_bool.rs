use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}", validate = is_valid)]
struct User {
    id: u64,
}

fn is_valid(user: &User) -> bool {
    user.id > 0
}

fn main() {}
