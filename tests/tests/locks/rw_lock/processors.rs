//! Work under a lock.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::Processor;
use shizuku_kv::rw_lock::{
    DistroRwLock, LockLoss, LockOptions, LockedResourceReadProcessor, LockedResourceWriteProcessor,
    WithLockProcessError, current_fencing_token, processor_fn,
};
use shizuku_kv_tests::eventually;

use crate::rw_lock::{handles, in_line, within};

async fn is_free(lock: &DistroRwLock) {
    eventually("the lock is released", async || match lock.try_write().await {
        Ok(guard) => guard.release().await.is_ok(),
        Err(error) => {
            assert!(error.is_retryable(), "{error:?}");
            false
        }
    })
    .await;
}

#[tokio::test]
async fn lock_is_held_during_work_and_released_after_it() {
    for stores in handles(2).await {
        let other = DistroRwLock::new(&stores[1], "r").unwrap();
        let work = processor_fn({
            let other = other.clone();
            move |what: &'static str| {
                let other = other.clone();
                async move {
                    assert!(other.try_write().await.is_err(), "no other claim writes");
                    let read = other.try_read().await.map(drop).is_ok();
                    let held = other.inspect().await.unwrap().holders[0].token;
                    assert_eq!(current_fencing_token(), Some(held));
                    let elsewhere = tokio::spawn(async { current_fencing_token() }).await.unwrap();
                    assert_eq!(elsewhere, None);
                    match what {
                        "fail" => Err("it failed"),
                        "panic" => panic!("it panicked"),
                        "hang" => std::future::pending().await,
                        _ => Ok(read),
                    }
                }
            }
        });
        let work = Arc::new(work);
        // Uses a borrowed store, and an owned one.
        let reading = LockedResourceReadProcessor::new(Arc::clone(&work), &stores[0], "r");
        let writing = Arc::new(LockedResourceWriteProcessor::new(work, stores[0].clone(), "r"));
        assert!(reading.process("").await.unwrap(), "others read too");
        is_free(&other).await;
        assert!(!writing.process("").await.unwrap(), "no reader holds it");
        is_free(&other).await;
        let failed = writing.process("fail").await.unwrap_err();
        assert!(matches!(failed, WithLockProcessError::Process("it failed")), "{failed:?}");
        is_free(&other).await;
        // Uses it as a processor itself, in a task of its own.
        let task = |what| {
            let writing = Arc::clone(&writing);
            tokio::spawn(async move { Processor::process(&*writing, what).await })
        };
        assert!(task("panic").await.unwrap_err().is_panic());
        is_free(&other).await;
        let hanging = task("hang");
        eventually("it is held", async || !other.inspect().await.unwrap().holders.is_empty()).await;
        hanging.abort();
        is_free(&other).await;
        in_line(&other, 0).await;
    }
}

#[tokio::test]
async fn work_without_lock_continues_or_ends_as_configured() {
    for stores in handles(2).await {
        let other = DistroRwLock::new(&stores[1], "r").unwrap();
        let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let work = Arc::new(processor_fn({
            let other = other.clone();
            move |is_endless: bool| {
                let (other, ended) = (other.clone(), ended.clone());
                async move {
                    other.break_lock().await.unwrap();
                    if is_endless {
                        std::future::pending::<()>().await;
                    }
                    ended.send(()).unwrap();
                    Ok::<_, std::convert::Infallible>(())
                }
            }
        }));
        let options = LockOptions::new().label("work");
        let going_on = LockedResourceWriteProcessor::new(Arc::clone(&work), &stores[0], "r")
            .options(options.clone());
        let lost = going_on.process(false).await.unwrap_err();
        assert!(
            matches!(lost, WithLockProcessError::LeaseLost { reason: LockLoss::Broken, .. }),
            "{lost:?}"
        );
        ends.recv().await.unwrap();
        let ending = LockedResourceWriteProcessor::new(work, &stores[0], "r")
            .options(options)
            .ends_when_lost();
        let lost = within(ending.process(true)).await.unwrap_err();
        assert!(matches!(lost, WithLockProcessError::LeaseLost { .. }), "{lost:?}");
        assert!(ends.try_recv().is_err());
        is_free(&other).await;
    }
}

#[tokio::test]
async fn processor_without_lock_does_not_run() {
    for stores in handles(2).await {
        let held = DistroRwLock::new(&stores[1], "r").unwrap().write().await.unwrap();
        let work = Arc::new(processor_fn(|()| async { panic!("it was not to be done") }));
        let short = LockOptions::new().wait(Duration::from_millis(100));
        let waiting = LockedResourceReadProcessor::<_>::new(work, &stores[0], "r").options(short);
        let rejected: Result<(), WithLockProcessError<std::convert::Infallible>> =
            waiting.process(()).await;
        assert!(matches!(rejected, Err(WithLockProcessError::Lock(_))), "{rejected:?}");
        let rejected = rejected.unwrap_err();
        assert_eq!((rejected.loss(), rejected.is_retryable()), (None, true));
        held.release().await.unwrap();
    }
}
