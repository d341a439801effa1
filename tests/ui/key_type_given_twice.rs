use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}", key_type = Id)]
struct User {
    id: u64,
}

#[derive(KeyValue)]
#[kv(key = "job.{id}", key_type = Id)]
struct Job {
    id: u64,
}

fn main() {
    let _ = (User { id: 7 }, Job { id: 7 });
}
