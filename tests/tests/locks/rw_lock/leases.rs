//! Holders that die, and the reaction of waiters. A dying process is simulated by a runtime that
//! ends, with everything on it.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockLoss};
use shizuku_kv::{WatchScope, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually};

use crate::rw_lock::{LEASE, SHORT_LEASE, dies_holding, handles, lock, options, runtime, within};

#[test]
fn waiter_is_granted_lock_of_dead_process() {
    let living = runtime();
    for stores in living.block_on(handles(3)) {
        // Long enough for a try before it is over.
        dies_holding(&stores[0], "r", LEASE);
        living.block_on(async {
            let (one, other) = (lock(&stores[1], "r"), lock(&stores[2], "r"));
            assert!(matches!(one.try_write().await, Err(DistroRwLockError::WouldBlock { .. })));
            let both = tokio::join!(one.read(), other.read());
            let (first, second) = (both.0.unwrap(), both.1.unwrap());
            assert_ne!(first.fencing_token(), second.fencing_token());
            // The dead process leaves nothing, not even its session.
            let state = one.inspect().await.unwrap();
            assert_eq!(state.holders.len(), 2, "{state:?}");
            let sessions =
                stores[1].keys(WatchScope::prefix("rw_lock_session.")).try_collect().await.unwrap();
            assert_eq!(sessions.len(), 2, "{sessions:?}");
        });
    }
}

#[test]
fn try_is_granted_lock_of_dead_process() {
    let living = runtime();
    for stores in living.block_on(handles(2)) {
        dies_holding(&stores[0], "r", SHORT_LEASE);
        living.block_on(async {
            let lock = lock(&stores[1], "r");
            within(async {
                while let Err(error) = lock.try_write().await {
                    assert!(matches!(error, DistroRwLockError::WouldBlock { .. }), "{error:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        });
    }
}

/// Its lease is over before another process acquires the lock. When it is back it knows.
#[tokio::test]
async fn holder_cut_off_is_notified_before_next_grant() {
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let behind = connect(&proxy.url()).await.unwrap().store("b").await.unwrap();
    let direct = connect(&server.url()).await.unwrap().store("b").await.unwrap();
    let short = options().lease(SHORT_LEASE);
    let short = DistroRwLock::with_options(&behind, "r", short).unwrap();
    let held = short.write().await.unwrap();
    let token = held.fencing_token();
    proxy.refuse(true);
    proxy.cut();
    let next = lock(&direct, "r");
    let next = async {
        let guard = next.write().await.unwrap();
        assert!(!held.is_held(), "it is lost by now");
        guard
    };
    let (next, loss) = tokio::join!(next, held.lost());
    assert_eq!(loss, LockLoss::Expired);
    assert!(next.fencing_token() > token);
    proxy.refuse(false);
    let error = held.release().await.unwrap_err();
    assert!(matches!(error, DistroRwLockError::LeaseLost { .. }), "{error:?}");
    assert!(next.is_held());
    // It works again from there, under a session of its own.
    next.release().await.unwrap();
    lock(&behind, "r").write().await.unwrap().release().await.unwrap();
}

/// A wait that is given up leaves nothing, even if it was granted at this moment.
#[tokio::test]
async fn dropped_waits_leave_no_claim() {
    for stores in handles(3).await {
        let (one, other) = (lock(&stores[0], "r"), lock(&stores[1], "r"));
        for round in 0..100_u64 {
            let held = other.write().await.unwrap();
            let wait = one.write();
            let dropped = tokio::time::timeout(Duration::from_micros(round * 40), wait).await;
            drop(held);
            drop(dropped);
        }
        let last = lock(&stores[2], "r");
        last.write().await.unwrap().release().await.unwrap();
        // The last wait may be given up while its claim is being written.
        eventually("no claim is left", async || {
            let state = last.inspect().await.unwrap();
            state.waiting.is_empty() && state.holders.is_empty()
        })
        .await;
    }
}
