use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "{}")]
struct User {
    id: u64,
}

fn look(_: UserKey) {}

fn main() {
    look(User { id: 1 }.kv_key());
}
