use serde::Serialize;
use shizuku_kv::{JsonByteSer, KeyValue, Store, TypedEntry};

#[derive(Serialize, JsonByteSer, KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

#[derive(KeyValue)]
#[kv(key = "job.{id}")]
struct Job {
    id: u64,
}

async fn write(user: &User, store: &Store, job: TypedEntry<Job>) {
    let _ = user.write_to_atomically(store, job).await;
}

fn main() {}
