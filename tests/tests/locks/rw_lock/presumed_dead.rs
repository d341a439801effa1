//! The reported state of holders, in particular of dead ones.

use std::time::{Duration, SystemTime};

use shizuku_kv::rw_lock::{DistroRwLock, LeaderElection, Leaders, LockOptions};
use shizuku_kv::{Store, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually};

use crate::rw_lock::{LEASE, handles, in_line, lock, options, runtime, start_waiting, within};

fn election(store: &Store, candidate: &str) -> LeaderElection {
    LeaderElection::with_options(store, "job", candidate, options()).unwrap()
}

async fn next(leaders: &mut Leaders) -> Option<String> {
    let next = within(leaders.next()).await.expect("the stream goes on").unwrap();
    next.map(|leader| leader.candidate)
}

#[tokio::test]
async fn inspect_shows_grant_lease_and_renewal() {
    for stores in handles(2).await {
        let before = SystemTime::now();
        let lock = lock(&stores[0], "r");
        let held = lock.write().await.unwrap();
        let longer = options().lease(2 * LEASE);
        let longer = DistroRwLock::with_options(&stores[1], "r", longer).unwrap();
        let waiting = start_waiting(&longer);
        in_line(&lock, 1).await;
        let view = DistroRwLock::new(&stores[1], "r").unwrap();
        // Longer than the lease of a holder that would not renew.
        eventually("it is renewed after its first lease", async || {
            let holder = view.inspect().await.unwrap().holders.remove(0);
            holder.claim.renewed.unwrap() >= holder.since.unwrap() + LEASE
        })
        .await;
        let state = view.inspect().await.unwrap();
        let (holder, waiter) = (&state.holders[0], &state.waiting[0]);
        let since = holder.since.unwrap();
        // The times agree to the millisecond.
        assert!(
            since + Duration::from_millis(1) >= before && since <= SystemTime::now(),
            "{since:?}"
        );
        assert_eq!((holder.claim.lease, waiter.lease), (Some(LEASE), Some(2 * LEASE)));
        assert!(!holder.claim.presumed_dead && !waiter.presumed_dead, "{state:?}");
        held.release().await.unwrap();
        let then = waiting.await.unwrap().unwrap();
        let state = lock.inspect().await.unwrap();
        assert!(state.holders[0].since.unwrap() > since, "{state:?}");
        then.release().await.unwrap();
    }
}

/// A process that dies leads a term, holds one lock, and waits for another.
#[test]
fn dead_process_is_presumed_dead_and_not_leader() {
    let living = runtime();
    for stores in living.block_on(handles(3)) {
        let dying = runtime();
        let lock = |store: usize, resource| lock(&stores[store], resource);
        let busy = living.block_on(lock(1, "busy").write()).unwrap();
        let (held, term) = dying.block_on(async {
            start_waiting(&lock(0, "busy"));
            in_line(&lock(0, "busy"), 1).await;
            (
                lock(0, "r").write().await.unwrap(),
                election(&stores[0], "dead").campaign().await.unwrap(),
            )
        });
        living.block_on(async {
            let view = election(&stores[2], "");
            let mut leaders = view.observe().await.unwrap();
            assert_eq!(next(&mut leaders).await.as_deref(), Some("dead"));
            assert_eq!(view.leader().await.unwrap().unwrap().candidate, "dead");
            dying.shutdown_background();
            std::mem::forget((held, term));

            assert_eq!(next(&mut leaders).await, None);
            // No process waits for its lock, so it stays in the record.
            let state = view.inspect().await.unwrap();
            assert_eq!(state.holders[0].claim.label.as_deref(), Some("dead"));
            eventually("it is presumed dead", async || {
                let dead = [
                    view.inspect().await.unwrap().holders[0].claim.presumed_dead,
                    lock(2, "r").inspect().await.unwrap().holders[0].claim.presumed_dead,
                    lock(2, "busy").inspect().await.unwrap().waiting[0].presumed_dead,
                ];
                dead == [true; 3]
            })
            .await;
            assert!(!lock(2, "busy").inspect().await.unwrap().holders[0].claim.presumed_dead);
            assert_eq!(view.leader().await.unwrap(), None);
            // A new candidate leads, and is delivered.
            let next_term = election(&stores[1], "next").campaign().await.unwrap();
            assert_eq!(next(&mut leaders).await.as_deref(), Some("next"));
            assert_eq!(view.leader().await.unwrap().unwrap().token, next_term.fencing_token());
            next_term.resign().await.unwrap();
            assert_eq!(next(&mut leaders).await, None);
            busy.release().await.unwrap();
        });
    }
}

/// An operator deleted the session key of a leader that did not resign.
#[tokio::test]
async fn leader_without_session_is_not_reported() {
    for stores in handles(2).await {
        let long = LockOptions::new().lease(Duration::from_secs(60));
        let term = LeaderElection::with_options(&stores[0], "job", "me", long).unwrap();
        let term = term.campaign().await.unwrap();
        let view = election(&stores[1], "");
        let mut leaders = view.observe().await.unwrap();
        assert_eq!(next(&mut leaders).await.as_deref(), Some("me"));
        let session = view.inspect().await.unwrap().holders[0].claim.session.clone();
        stores[1].delete(format!("rw_lock_session.{session}")).await.unwrap();
        assert_eq!(next(&mut leaders).await, None);
        assert_eq!(view.leader().await.unwrap(), None);
        let claim = &view.inspect().await.unwrap().holders[0].claim;
        assert!(
            claim.presumed_dead && claim.lease.is_none() && claim.renewed.is_none(),
            "{claim:?}"
        );
        drop(term);
    }
}

/// The observer sees no renewal for longer than the leader's lease. The leader never stopped
/// leading.
#[tokio::test]
async fn observer_after_a_cut_reports_the_leader_again() {
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let direct = connect(&server.url()).await.unwrap().store("b").await.unwrap();
    let term = election(&direct, "me").campaign().await.unwrap();
    let behind = connect(&proxy.url()).await.unwrap().store("b").await.unwrap();
    let mut leaders = election(&behind, "").observe().await.unwrap();
    assert_eq!(next(&mut leaders).await.as_deref(), Some("me"));
    // While it renews, no update is delivered.
    assert!(tokio::time::timeout(LEASE * 5 / 4, leaders.next()).await.is_err());
    proxy.refuse(true);
    proxy.cut();
    assert_eq!(next(&mut leaders).await, None);
    proxy.refuse(false);
    assert_eq!(next(&mut leaders).await.as_deref(), Some("me"));
    assert!(term.is_leader());
}
