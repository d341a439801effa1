use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User(u64);

fn look(_: UserKey) {}

fn main() {
    look(User(7).kv_key());
}
