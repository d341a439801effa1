//! Reading a live value allocates no memory. Runs in a process of its own, whose allocator counts.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::hint::black_box;

use allocation_counter::measure;
use serde::{Deserialize, Serialize};
use shizuku_kv::{KeyValue, LiveStatic, StaticKeyIndexedValue, connect};

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.names", codec = json)]
struct Names {
    names: Vec<String>,
}

#[tokio::test]
async fn loading_does_not_allocate() {
    let store = connect("memory:").await.unwrap().store("config").await.unwrap();
    Names { names: vec!["a".to_owned(); 100] }.write_to_anyway(&store).await.unwrap();
    let live = Names::live(&store).await.unwrap();
    // A thread's first load registers it as a reader.
    black_box(live.load().names.len());
    let counted = measure(|| {
        for _ in 0..1000 {
            black_box(live.load().names.len());
            black_box(live.version());
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
    // Checks that the allocator counts at all.
    assert!(measure(|| drop(black_box(vec![1]))).count_total > 0);
}
