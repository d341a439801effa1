use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(validate = "User::check", key = "user.{id}")]
struct User {
    id: u64,
}

impl User {
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

fn main() {
    let key = UserKey { id: 7 };
    let _ = (key == UserKey::from(7), UserKey::scope(), User::check);
}
