//! Typed streams that several tasks or futures read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use shizuku_kv::{
    KeyValue, KeyValueRead, LiveRead, Store, TypedEntry, TypedUpdate, TypedWatch, WatchScope,
};

use crate::Outcome;
use crate::fixture::{Counter, counter, store};

async fn caught_up(store: &Store) -> TypedWatch<Counter> {
    let watch = Counter::watch_all(store).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::CaughtUp))));
    watch
}

async fn next_name(watch: &TypedWatch<Counter>) -> String {
    TypedEntry::into_value(watch.next().await.unwrap().unwrap().into_entry().unwrap()).name
}

/// Polls once, as this task.
async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(future.poll_unpin(cx).is_pending())).await
}

/// A future of `next` that was polled and then left alone blocks no other.
#[tokio::test(start_paused = true)]
async fn pending_next_blocks_no_other() -> Outcome {
    let store = store().await;
    let watch = caught_up(&store).await;
    let mut kept = Box::pin(next_name(&watch));
    assert!(is_pending(&mut kept).await);
    let other = async {
        let other = next_name(&watch);
        let write = async { counter("a", 1).write_to_anyway(&store).await };
        let (name, written) = tokio::join!(other, write);
        written.map(|_| name)
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), other).await??, "a");
    assert!(watch.cursor().is_some());
    assert!(is_pending(&mut kept).await);
    counter("b", 1).write_to_anyway(&store).await?;
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), kept).await?, "b");
    Ok(())
}

/// Two futures in one task, which has one waker: the second is woken too when the first is done.
#[tokio::test(start_paused = true)]
async fn two_nexts_of_one_task_each_get_an_update() -> Outcome {
    let store = store().await;
    let watch = caught_up(&store).await;
    let writes = async {
        for name in ["a", "b"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
            counter(name, 1).write_to_anyway(&store).await.unwrap();
        }
    };
    let both = async { tokio::join!(next_name(&watch), next_name(&watch), writes) };
    let (one, two, ()) = tokio::time::timeout(Duration::from_secs(1), both).await?;
    assert_ne!(one, two);
    Ok(())
}

/// If any of several tasks stops waiting, the others are still woken, and nothing is lost.
#[tokio::test(start_paused = true)]
async fn aborted_task_loses_no_wake_up() -> Outcome {
    for gone in 0..3 {
        let store = store().await;
        let watch = Arc::new(caught_up(&store).await);
        let mut tasks = (0..3)
            .map(|_| {
                let watch = Arc::clone(&watch);
                tokio::spawn(async move { next_name(&watch).await })
            })
            .collect::<Vec<_>>();
        tokio::time::sleep(Duration::from_millis(1)).await;
        // Woken by the write, and aborted before it can take the update.
        counter("a", 1).write_to_anyway(&store).await?;
        tasks.remove(gone).abort();
        counter("b", 1).write_to_anyway(&store).await?;
        let mut names = Vec::new();
        for task in tasks {
            names.push(tokio::time::timeout(Duration::from_secs(1), task).await??);
        }
        names.sort();
        assert_eq!(names, ["a", "b"]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_a_watch() -> Outcome {
    const TASKS: usize = 8;
    const EACH: usize = 200;
    let store = store().await;
    let watch = Arc::new(caught_up(&store).await);
    let tasks = (0..TASKS).map(|_| {
        let watch = Arc::clone(&watch);
        tokio::spawn(async move {
            let mut names = Vec::new();
            for _ in 0..EACH {
                names.push(next_name(&watch).await);
            }
            names
        })
    });
    let tasks = tasks.collect::<Vec<_>>();
    for number in 0..TASKS * EACH {
        // Each has a key of its own, so that none is superseded.
        counter(&number.to_string(), 1).write_to_anyway(&store).await?;
        if number % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut names = Vec::new();
    for task in tasks {
        names.extend(tokio::time::timeout(Duration::from_secs(20), task).await??);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), TASKS * EACH);
    Ok(())
}

/// No stream needs `mut`, and several tasks can read one stream: every item arrives once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_is_read_through_a_shared_reference() -> Outcome {
    const RECORDS: u64 = 200;
    let store = store().await;
    for count in 0..RECORDS {
        counter(&format!("k{count}"), count).write_to_anyway(&store).await?;
    }
    let (watch, scan) = (store.watch(WatchScope::All).await?, store.scan(WatchScope::All));
    let (keys, list, map) =
        (store.keys(WatchScope::All), Counter::list(&store), Counter::live_map(&store).await?);
    let (changes, live) = (map.changes(), Counter::live_at(&store, "k1").await?);
    let (values, statuses) = (live.stream(), live.statuses());
    let count = AtomicU32::new(0);
    let read = async || {
        while scan.next().await.is_some() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::join!(read(), read(), read());
    assert_eq!(count.load(Ordering::Relaxed), u32::try_from(RECORDS)?);
    counter("k1", 1000).write_to_anyway(&store).await?;
    assert_eq!(changes.next().await.unwrap().new.unwrap().count.0, 1000);
    assert_eq!(values.next().await.unwrap().count.0, 1);
    assert!(
        statuses.next().await.is_some()
            && watch.next().await.is_some()
            && keys.next().await.is_some()
    );
    assert!(list.next().await.is_some());
    Ok(())
}
