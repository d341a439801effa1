use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "session.{id}", ttl = "500ms")]
struct Session {
    id: u64,
}

fn main() {}
