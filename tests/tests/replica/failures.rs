//! A failure is retried as the policy says, and ends the run only then.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::replica::{Replica, ReplicaError, RetryPolicy, StorageError};
use shizuku_kv::{BatchConfig, WatchScope};
use shizuku_kv_tests::eventually;
use tokio::time::Instant;

use crate::disk::Disk;
use crate::script::{Script, cursor};
use crate::support::{Follower, Refused, asking, briskly, real};

/// Returns a storage that holds `a=1` without a checkpoint. Its replica will resync, and call every
/// method of the storage.
async fn without_checkpoint(script: &mut Script) -> Disk {
    let disk = Disk::new();
    let mut follower = script.follow(&disk);
    script.accept().await.all(1, &["a=1", "."]);
    follower.asks.up_to(".").await;
    follower.stop().await;
    disk.lose_checkpoint();
    disk
}

fn one() -> BatchConfig {
    BatchConfig::new().max_updates(1)
}

#[tokio::test]
async fn failed_batch_is_delivered_until_it_is_applied() {
    let mut script = Script::new();
    let replica = Replica::new(&script.store, WatchScope::All).batch(one());
    let mut follower = Follower::start(replica.retry(briskly(RetryPolicy::forever())));
    let feed = script.accept().await;
    feed.all(1, &["a=1", "b=1"]);
    for attempt in 1..=20 {
        let batch = follower.asks.next().await.fail("not yet");
        assert_eq!(
            (crate::support::told(&batch), batch.cursor()),
            (vec!["a=1".to_owned()], Some(cursor(1)))
        );
        let failed = async || {
            let progress = follower.monitor.progress();
            let error = progress.last_error.as_deref().map(|error| error.to_string());
            let expected = format!("applying 1 updates failed at try {attempt}: not yet");
            error.is_some_and(|error| error == expected)
                && progress.unapplied == 1
                && progress.applied.is_none()
        };
        eventually("the failure is told", failed).await;
        assert!(!follower.monitor.progress().is_current());
    }
    assert_eq!(follower.asks.done().await, ["a=1"]);
    assert_eq!(follower.asks.done().await, ["b=1"]);
    let forgotten = async || follower.monitor.progress().last_error.is_none();
    eventually("the failure is forgotten", forgotten).await;
    feed.all(3, &["."]);
    follower.asks.up_to(".").await;
    follower.current().await;

    // A complete copy does not count as current while an operation fails.
    feed.say(4, "c=1");
    follower.asks.next().await.fail("not yet");
    let failed = async || follower.monitor.progress().last_error.is_some();
    eventually("the failure is told", failed).await;
    let progress = follower.monitor.progress();
    assert!(progress.caught_up && progress.link.is_up() && !progress.is_current());
    follower.asks.done().await;
    follower.current().await;
    let (replica, _, _) = follower.stop().await;
    assert!(replica.monitor().progress().last_error.is_none());
}

#[tokio::test]
async fn run_ends_after_the_allowed_attempts() {
    for (policy, attempts) in
        [(RetryPolicy::never(), 1), (RetryPolicy::attempts(1), 1), (RetryPolicy::attempts(3), 3)]
    {
        let mut script = Script::new();
        let disk = Disk::new();
        let replica = script.replica(&disk).batch(one());
        let mut follower = Follower::start(replica.retry(briskly(policy)));
        script.accept().await.all(1, &["a=1", "b=1"]);
        // The attempts at one batch do not count for the next.
        for _ in 1..attempts {
            assert_eq!(follower.asks.next().await.fail("no").cursor(), Some(cursor(1)));
        }
        follower.asks.done().await;
        for _ in 0..attempts {
            assert_eq!(follower.asks.next().await.fail("enough").cursor(), Some(cursor(2)));
        }
        let monitor = follower.monitor.clone();
        let (mut replica, outcome) = follower.end().await;
        let error = outcome.unwrap_err();
        let ReplicaError::Apply { updates, attempts: made, ref source, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!((updates, made), (1, attempts));
        assert_eq!(source.downcast_ref::<Refused>(), Some(&Refused("enough")));
        let source =
            error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
        assert!(error.to_string().contains("enough"), "{error}, {source:?}");
        let progress = monitor.progress();
        assert!(!progress.running && progress.unapplied == 0 && progress.unapplied_since.is_none());
        assert_eq!(progress.last_error.unwrap().to_string(), error.to_string());
        assert_eq!(disk.cursor(), Some(cursor(1)));

        // Another run begins with that batch, and without the error.
        let (asker, mut asks) = asking();
        let opening = tokio::select! {
            _ = replica.run(asker.apply()) => panic!("it goes on"),
            opening = script.opening() => opening,
        };
        assert_eq!(opening.from, Some(cursor(1)));
        assert!(monitor.progress().last_error.is_none());
        assert!(asks.ready().is_none());
    }
}

/// Pauses begin with the first, double, and stay at the longest. Jitter makes them up to twice as
/// long.
#[tokio::test(start_paused = true)]
async fn pauses_grow_and_start_again_with_each_batch() {
    let mut script = Script::new();
    let second = Duration::from_secs(1);
    let replica = Replica::new(&script.store, WatchScope::All).batch(one());
    let replica = replica.retry(RetryPolicy::forever().pauses(second, second * 4));
    let mut follower = Follower::start(replica);
    script.accept().await.all(1, &["a=1", "b=1", "."]);
    for _batch in 0..2 {
        let mut last = Instant::now();
        follower.asks.next().await.fail("no");
        for pause in [1, 2, 4, 4, 4] {
            let ask = follower.asks.next().await;
            let waited = last.elapsed();
            assert!(
                (second * pause..=second * (2 * pause) + second).contains(&waited),
                "{pause}: {waited:?}"
            );
            last = Instant::now();
            ask.fail("no");
        }
        follower.asks.done().await;
    }
}

#[tokio::test]
async fn failed_storage_call_is_retried() {
    for method in ["checkpoint", "is_empty", "held", "for_each_key", "commit"] {
        let mut script = Script::new();
        let disk = without_checkpoint(&mut script).await;
        let before = disk.calls(method);
        disk.fail(method, 3, StorageError::retryable);
        let replica = script.replica(&disk);
        let mut follower = Follower::start(replica.retry(briskly(RetryPolicy::forever())));
        let opening = script.opening().await;
        assert_eq!(opening.from, None);
        if ["checkpoint", "is_empty"].contains(&method) {
            // The failure was only transient.
            assert!(follower.monitor.progress().last_error.is_none(), "{method}");
        }
        opening.accept().all(7, &["b=1", "."]);
        // The batch is applied once, however often it had to be committed.
        let told = follower.asks.up_to(".").await;
        assert_eq!(told, ["b=1", "~a", "."], "{method}");
        follower.current().await;
        follower.stop().await;
        assert_eq!(disk.words(), ["b=1"], "{method}");
        assert!(disk.calls(method) >= before + 4, "{method}");
        assert_eq!(disk.cursor(), Some(cursor(8)));
    }
}

#[tokio::test]
async fn final_storage_error_ends_the_run() {
    let doing = [
        ("checkpoint", "reading its checkpoint"),
        ("is_empty", "reading its checkpoint"),
        ("held", "looking up stored entries"),
        ("for_each_key", "looking for what has vanished"),
        ("commit", "keeping what was applied"),
    ];
    // A fatal error ends the run at once, whatever the policy. A retryable error ends it after the
    // attempts. A panic counts as a fatal error.
    for kind in ["fatal", "passing", "panic"] {
        for (method, doing) in doing {
            let mut script = Script::new();
            let disk = without_checkpoint(&mut script).await;
            let before = disk.calls(method);
            disk.hook(move |called| match kind {
                _ if called != method => Ok(()),
                "fatal" => Err(StorageError::fatal("the disk is gone")),
                "passing" => Err(StorageError::retryable("the disk is gone")),
                _ => std::panic::resume_unwind(Box::new("the disk is gone")),
            });
            let policy =
                if kind == "passing" { RetryPolicy::attempts(3) } else { RetryPolicy::forever() };
            let replica = script.replica(&disk);
            let mut follower = Follower::start(replica.retry(briskly(policy)));
            let monitor = follower.monitor.clone();
            if !["checkpoint", "is_empty"].contains(&method) {
                script.accept().await.all(7, &["b=1", "."]);
            }
            if ["commit", "for_each_key"].contains(&method) {
                assert_eq!(follower.asks.done().await, ["b=1"], "{method}");
            }
            let (replica, outcome) = follower.end().await;
            let error = outcome.unwrap_err();
            assert!(matches!(error, ReplicaError::Storage { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(doing), "{text}");
            assert!(kind == "panic" || text.contains("the disk is gone"), "{text}");
            assert_eq!(
                disk.calls(method) - before,
                if kind == "passing" { 3 } else { 1 },
                "{kind} {method}"
            );
            assert_eq!(monitor.progress().last_error.unwrap().to_string(), text);
            assert!(!monitor.progress().running);
            assert_eq!(disk.kept(), None);

            // After the storage has been repaired, the same replica continues.
            disk.hook(|_| Ok(()));
            let mut follower = Follower::start(replica);
            script.accept().await.all(7, &["b=1", "."]);
            let told = follower.asks.up_to(".").await;
            // Updates that were committed before the failure do not come again.
            let known = method == "for_each_key";
            assert_eq!(
                told,
                if known { vec!["~a", "."] } else { vec!["b=1", "~a", "."] },
                "{kind} {method}"
            );
            follower.stop().await;
            assert_eq!(disk.words(), ["b=1"]);
        }
    }
}

/// The retried lookup finds nothing to apply.
#[tokio::test]
async fn past_failure_is_forgotten_without_a_commit() {
    let mut script = Script::new();
    let disk = without_checkpoint(&mut script).await;
    disk.fail("held", 3, StorageError::retryable);
    let commits = disk.calls("commit");
    let replica = script.replica(&disk);
    let follower = Follower::start(replica.retry(briskly(RetryPolicy::forever())));
    script.accept().await.all(1, &["a=1"]);
    let forgotten =
        async || disk.calls("held") == 4 && follower.monitor.progress().last_error.is_none();
    eventually("it is forgotten", forgotten).await;
    assert_eq!(disk.calls("commit"), commits);
    follower.stop().await;
}

/// The attempts at looking up, at applying and at committing are counted separately.
#[tokio::test]
async fn attempts_at_one_operation_count_for_no_other() {
    let mut script = Script::new();
    let disk = without_checkpoint(&mut script).await;
    let mut left = [("held", 2), ("commit", 2)];
    disk.hook(move |called| match left.iter_mut().find(|(method, _)| *method == called) {
        Some((_, times)) if *times > 0 => {
            *times -= 1;
            Err(StorageError::retryable("the disk is full"))
        }
        _ => Ok(()),
    });
    let replica = script.replica(&disk).retry(briskly(RetryPolicy::attempts(3)));
    let mut follower = Follower::start(replica);
    script.accept().await.all(7, &["b=1", "."]);
    for _ in 0..2 {
        assert_eq!(follower.asks.next().await.fail("no").updates().len(), 1);
    }
    assert_eq!(follower.asks.done().await, ["b=1"]);
    // The failed commits were made again without another call of `apply`.
    for _ in 0..3 {
        let batch = follower.asks.next().await.fail("no");
        assert_eq!(crate::support::told(&batch), ["~a"]);
    }
    let error = follower.error().await;
    assert!(matches!(error, ReplicaError::Apply { attempts: 3, .. }), "{error:?}");
}

#[tokio::test]
async fn panic_of_apply_is_a_panic_of_the_run() {
    let mut script = Script::new();
    let mut replica = Replica::new(&script.store, WatchScope::All);
    let monitor = replica.monitor();
    let task = tokio::spawn(async move {
        let apply =
            async |_| -> Result<(), Refused> { std::panic::resume_unwind(Box::new("apply")) };
        let run = std::panic::AssertUnwindSafe(replica.run(apply));
        let panicked = futures_util::FutureExt::catch_unwind(run).await;
        (replica, panicked.is_err())
    });
    script.accept().await.all(1, &["a=1", "."]);
    let (replica, panicked) = real(task).await.unwrap().unwrap();
    assert!(panicked);
    assert!(!monitor.progress().running);
    let mut follower = Follower::start(replica);
    script.accept().await.all(1, &["a=1", "."]);
    assert_eq!(follower.asks.up_to(".").await, ["a=1", "."]);
    follower.stop().await;
}
