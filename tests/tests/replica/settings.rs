//! Impossible settings are reported before any request is sent, and `Debug` shows no value.

use std::time::Duration;

use futures_util::FutureExt;
use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{MemoryStorage, Replica, ReplicaError, RetryPolicy};
use shizuku_kv::{BatchConfig, WatchScope, watch_applied};

use crate::script::Script;
use crate::support::{Follower, Refused, asking, memory, write};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

async fn refused(with: impl FnOnce(Replica) -> Replica) -> String {
    // No answer would come from there, so no request may be sent.
    let script = Script::new();
    let mut replica = with(Replica::new(&script.store, WatchScope::All));
    let (asker, mut asks) = asking();
    let monitor = replica.monitor();
    // The error comes at once.
    let error = replica.run(asker.apply()).now_or_never().unwrap().unwrap_err();
    assert!(matches!(error, ReplicaError::InvalidConfig { .. }), "{error:?}");
    assert!(asks.ready().is_none() && !monitor.progress().running);
    error.to_string()
}

#[tokio::test]
async fn invalid_setting_is_named() {
    let batch = |batch: BatchConfig| refused(move |replica| replica.batch(batch));
    let nothing = Duration::ZERO;
    assert_eq!(batch(BatchConfig::new().max_updates(0)).await, "max_updates must be at least 1");
    assert_eq!(batch(BatchConfig::new().max_bytes(0)).await, "max_bytes must be at least 1");
    let long = HOUR + Duration::from_nanos(1);
    assert_eq!(batch(BatchConfig::new().window(long)).await, "window must be at most an hour");
    let retry = |retry: RetryPolicy| refused(move |replica| replica.retry(retry));
    assert_eq!(retry(RetryPolicy::attempts(0)).await, "attempts must be at least 1");
    let pauses = |first, longest| retry(RetryPolicy::forever().pauses(first, longest));
    assert_eq!(pauses(nothing, SECOND).await, "the first pause must be at least 1 ms");
    let longest = "the longest pause must be at least the first one, and at most an hour";
    assert_eq!(pauses(SECOND, SECOND / 2).await, longest);
    assert_eq!(pauses(SECOND, long).await, longest);
    let compare = refused(|replica| replica.compare_every(SECOND - Duration::from_nanos(1))).await;
    assert_eq!(compare, "compare_every must be at least a second");

    // The same in the short form.
    let (_connection, store) = memory().await;
    let apply = async |_| Ok::<_, Refused>(());
    let batch = BatchConfig::new().max_updates(0);
    let run = watch_applied(
        &store,
        WatchScope::All,
        MemoryStorage::new(),
        batch,
        CancellationToken::new(),
        apply,
    );
    let error = run.await.unwrap_err();
    assert!(matches!(error, ReplicaError::InvalidConfig { field: "max_updates", .. }), "{error:?}");
}

#[tokio::test]
async fn the_ends_of_the_ranges_work() {
    let (_connection, store) = memory().await;
    let smallest = BatchConfig::new().max_updates(1).max_bytes(1).window(Duration::ZERO);
    let largest = BatchConfig::new().max_updates(usize::MAX).max_bytes(usize::MAX).window(HOUR);
    for batch in [smallest, largest] {
        let moment = Duration::from_millis(1);
        for retry in
            [RetryPolicy::attempts(1), RetryPolicy::attempts(u32::MAX).pauses(moment, HOUR)]
        {
            let replica = Replica::new(&store, WatchScope::All).batch(batch).retry(retry);
            let mut follower = Follower::start(replica.compare_every(SECOND));
            follower.asks.up_to(".").await;
            follower.stop().await;
        }
    }
    assert_eq!(BatchConfig::new(), BatchConfig::default());
    let default = BatchConfig::default();
    assert_eq!(
        (default.window, default.max_updates, default.max_bytes),
        (SECOND / 100, 8192, 4 << 20)
    );
    assert_eq!(RetryPolicy::default(), RetryPolicy::forever());
    assert_eq!(RetryPolicy::never(), RetryPolicy::attempts(1));
}

#[tokio::test]
async fn debug_shows_no_value() {
    let (_connection, store) = memory().await;
    write(&store, &["key=sesame"]).await;
    let disk = crate::disk::Disk::new();
    let mut follower =
        Follower::start(Replica::new(&store, WatchScope::All).storage(MemoryStorage::new()));
    let ask = follower.asks.next().await;
    let mut shown = format!("{:?} {:#?} {:?}", ask.batch, ask.batch, ask.batch.updates());
    ask.fail("no");
    follower.asks.up_to(".").await;
    follower.current().await;
    shown += &format!("{:?} {:?}", follower.monitor, follower.monitor.progress());
    let (replica, end, _) = follower.stop().await;
    shown += &format!("{replica:?} {end:?} {disk:?}");
    assert!(!shown.contains("sesame"), "{shown}");
    // The output is not empty.
    for part in ["Replica", "\"replica\"", "All", "Batch", "updates", "position", "running"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    let storage = MemoryStorage::new();
    let mut replica =
        Replica::new(&store, WatchScope::All).storage(storage).retry(RetryPolicy::never());
    let error = replica.run(async |_| Err::<(), _>(Refused("no"))).await.unwrap_err();
    let shown = format!("{error:?} {error} {replica:?}");
    assert!(!shown.contains("sesame") && shown.contains("Refused"), "{shown}");
}
