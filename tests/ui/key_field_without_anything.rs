use shizuku_kv::KeyValue;

struct Id(u64);

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: Id,
}

fn main() {}
