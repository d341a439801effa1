use serde::{Deserialize, Serialize};
use shizuku_kv::{KeyValue, KeyValueWrite, Store};

#[derive(Serialize, Deserialize, KeyValue)]
#[kv(key = "user.{id}", codec = json)]
struct User {
    id: u64,
}

#[derive(Serialize, Deserialize, KeyValue)]
#[kv(key = "job.{id}", codec = json)]
struct Job {
    id: u64,
}

async fn modify(store: &Store) {
    let _ = User::modify(store, 7, |_| Some(Job { id: 7 })).await;
}

fn main() {}
