use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "session.{id}", ttl = "1s1h")]
struct Session {
    id: u64,
}

fn main() {}
