use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User;

fn look(_: UserKey) {}

fn main() {
    look(User.kv_key());
}
