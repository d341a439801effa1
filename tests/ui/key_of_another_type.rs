use serde::Deserialize;
use shizuku_kv::{JsonByteDes, KeyValue, Store};

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User {
    id: u64,
}

#[derive(Deserialize, JsonByteDes, KeyValue)]
#[kv(key = "job.{id}")]
struct Job {
    id: u64,
}

async fn read(store: &Store) {
    let _ = Job::read_from(store, UserKey { id: 7 }).await;
}

fn main() {}
