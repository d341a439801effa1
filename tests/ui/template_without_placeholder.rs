use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.all")]
struct User {
    id: u64,
}

fn look(_: UserKey) {}

fn main() {
    look(User { id: 1 }.kv_key());
}
