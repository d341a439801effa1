//! A replica runs in a task of any runtime, with closures of any kind.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{Batch, MemoryStorage, Replica};
use shizuku_kv::{BatchConfig, WatchScope, watch_applied};

use crate::support::{memory, real, write};

async fn scene() {
    let (_connection, store) = memory().await;
    write(&store, &["a=1", "b=1"]).await;
    let count = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();

    // A closure that returns a future.
    let (mut replica, counted) =
        (Replica::new(&store, WatchScope::All).stop_on(stop.clone()), Arc::clone(&count));
    let mut monitor = replica.monitor();
    tasks.push(tokio::spawn(async move {
        let mut batches = 0;
        let apply = move |batch: Batch| {
            batches += 1;
            let counted = Arc::clone(&counted);
            async move {
                tokio::task::yield_now().await;
                counted.fetch_add(batch.updates().len().min(batches * 3), Ordering::SeqCst);
                Ok::<_, Infallible>(())
            }
        };
        replica.run(apply).await.map(|_| ())
    }));
    assert!(monitor.current().await);
    assert_eq!(count.load(Ordering::SeqCst), 3);

    // An async closure that borrows its task's variables, and errors that are not a type of the
    // caller's.
    let mut replica = Replica::new(&store, WatchScope::All).stop_on(stop.clone());
    let (mut monitor, counted) = (replica.monitor(), Arc::clone(&count));
    tasks.push(tokio::spawn(async move {
        let batches = AtomicUsize::new(0);
        let apply = async |batch: Batch| {
            tokio::task::yield_now().await;
            batches.fetch_add(1, Ordering::SeqCst);
            counted.fetch_add(batch.updates().len(), Ordering::SeqCst);
            Ok::<_, Box<dyn Error + Send + Sync>>(())
        };
        let end = replica.run(apply).await.map(|_| ());
        assert_eq!(batches.load(Ordering::SeqCst), 1);
        end
    }));
    assert!(monitor.current().await);
    assert_eq!(count.load(Ordering::SeqCst), 6);

    // The short form.
    let (store, stopped, counted) = (store.clone(), stop.clone(), Arc::clone(&count));
    let (done, is_done) = tokio::sync::oneshot::channel();
    tasks.push(tokio::spawn(async move {
        let mut done = Some(done);
        let apply = |batch: Batch| {
            counted.fetch_add(batch.updates().len(), Ordering::SeqCst);
            let _ = done.take().map(|done| done.send(()));
            std::future::ready(Ok::<_, String>(()))
        };
        let storage = MemoryStorage::new();
        watch_applied(&store, WatchScope::All, storage, BatchConfig::new(), stopped, apply)
            .await
            .map(|_| ())
    }));
    real(is_done).await.unwrap().unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 9);

    stop.cancel();
    for task in tasks {
        real(task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn on_one_thread() {
    scene().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_several_threads() {
    scene().await;
    tokio::spawn(scene()).await.unwrap();
}
