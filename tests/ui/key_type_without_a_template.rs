use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key_type = Id)]
struct User {
    #[kv(key)]
    id: String,
}

fn look(_: Id) {}

fn main() {
    look(User { id: String::new() }.kv_key());
}
