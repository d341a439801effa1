//! One leader among candidates.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::rw_lock::{
    DistroRwLock, DistroRwLockError, LeaderElection, LeaderGuardProcessor, LockLoss,
    WithLockProcessError, processor_fn,
};
use shizuku_kv::{Connection, KvError, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, unique, urls};

use crate::rw_lock::{handles, within};

#[tokio::test]
async fn candidates_lead_in_turn_and_are_observed() {
    for stores in handles(3).await {
        let [one, two] =
            [0, 1].map(|n| LeaderElection::new(&stores[n], "job", format!("node-{n}")).unwrap());
        let observer = LeaderElection::new(&stores[2], "job", "").unwrap();
        let leaders = observer.observe().await.unwrap();
        assert_eq!(leaders.next().await.unwrap().unwrap(), None);
        let first = one.campaign().await.unwrap();
        let seen = leaders.next().await.unwrap().unwrap().unwrap();
        assert_eq!((seen.candidate.as_str(), seen.token), ("node-0", first.fencing_token()));
        assert!(matches!(two.try_campaign().await, Err(DistroRwLockError::WouldBlock { .. })));
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { two.campaign().await.unwrap() }
        });
        within(async {
            // A lock of the same name is separate.
            let lock = DistroRwLock::new(&stores[2], "job").unwrap();
            assert!(lock.inspect().await.unwrap().holders.is_empty());
            let record =
                || async { stores[2].get("rw_lock_leader.job").await.unwrap().unwrap().value };
            while !String::from_utf8_lossy(&record().await).contains("node-1") {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        assert!(first.is_leader() && first.candidate() == "node-0");
        assert_eq!(observer.inspect().await.unwrap().waiting.len(), 1);
        first.resign().await.unwrap();
        let second = waiting.await.unwrap();
        assert!(second.is_leader());
        let seen = leaders.next().await.unwrap().unwrap().unwrap();
        assert_eq!((seen.candidate.as_str(), seen.token), ("node-1", second.fencing_token()));
        assert_eq!(observer.leader().await.unwrap(), Some(seen));
        drop(second);
        assert_eq!(leaders.next().await.unwrap().unwrap(), None);
    }
}

#[tokio::test]
async fn operator_ends_a_term() {
    for stores in handles(2).await {
        let [one, two] = [0, 1].map(|n| LeaderElection::new(&stores[n], "job", "me").unwrap());
        let leadership = one.campaign().await.unwrap();
        two.break_term().await.unwrap();
        assert_eq!(within(leadership.lost()).await, LockLoss::Broken);
        let next = two.try_campaign().await.unwrap();
        assert!(next.is_leader() && next.fencing_token() > leadership.fencing_token());
    }
}

#[tokio::test]
async fn leader_processor_runs_only_for_leader() {
    for stores in handles(2).await {
        let election = LeaderElection::new(&stores[0], "job", "me").unwrap();
        let leadership = Arc::new(election.campaign().await.unwrap());
        let record = stores[1].clone();
        let work = processor_fn(move |is_deposed: bool| {
            let record = record.clone();
            async move {
                if is_deposed {
                    // An operator who removes its record breaks an election.
                    record.delete("rw_lock_leader.job").await.unwrap();
                    std::future::pending::<()>().await;
                }
                Ok::<_, std::convert::Infallible>(7)
            }
        });
        let guarded =
            LeaderGuardProcessor::new(Arc::new(work), Arc::clone(&leadership)).ends_when_lost();
        assert_eq!(guarded.process(false).await.unwrap(), 7);
        let lost = within(guarded.process(true)).await.unwrap_err();
        assert!(
            matches!(lost, WithLockProcessError::LeaseLost { reason: LockLoss::Broken, .. }),
            "{lost:?}"
        );
        assert!(!leadership.is_leader());
        let late = guarded.process(false).await.unwrap_err();
        assert!(
            matches!(late, WithLockProcessError::Lock(DistroRwLockError::LeaseLost { .. })),
            "{late:?}"
        );
    }
}

#[tokio::test]
async fn observer_of_deleted_store_is_notified_and_ends() {
    for url in urls() {
        let connection = connect(&url).await.unwrap();
        let name = unique("gone");
        let store = connection.store(&name).await.unwrap();
        let election = LeaderElection::new(&store, "job", "me").unwrap();
        let leadership = election.campaign().await.unwrap();
        let leaders = election.observe().await.unwrap();
        assert_eq!(within(leaders.next()).await.unwrap().unwrap().unwrap().candidate, "me");
        connection.delete_store(&name).await.unwrap();
        let error = within(leaders.next()).await.expect("it is notified").unwrap_err();
        let is_gone = matches!(
            &error,
            DistroRwLockError::Store { source: KvError::StoreNotFound { store, .. }, .. }
                if *store == name
        );
        assert!(is_gone, "{error:?}");
        assert!(within(leaders.next()).await.is_none(), "nothing comes after an error");
        assert_eq!(within(leadership.lost()).await, LockLoss::StoreGone);
        // The store is recreated, and so are elections.
        let again = connection.store(&name).await.unwrap();
        let election = LeaderElection::new(&again, "job", "again").unwrap();
        assert!(within(election.campaign()).await.unwrap().is_leader());
    }
}

/// The observer is cut off meanwhile, so that it never sees the missing store.
#[tokio::test]
async fn observer_outlives_a_store_recreated_before_it_notices() {
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let direct = connect(&server.url()).await.unwrap();
    let store = direct.store("b").await.unwrap();
    let first = LeaderElection::new(&store, "job", "first").unwrap().campaign().await.unwrap();
    let behind = connect(&proxy.url()).await.unwrap().store("b").await.unwrap();
    let leaders = LeaderElection::new(&behind, "job", "").unwrap().observe().await.unwrap();
    assert_eq!(within(leaders.next()).await.unwrap().unwrap().unwrap().candidate, "first");
    proxy.refuse(true);
    proxy.cut();
    direct.delete_store("b").await.unwrap();
    let store = direct.store("b").await.unwrap();
    proxy.refuse(false);
    // The new store has no leader until one is elected, whose term is the first.
    assert_eq!(within(leaders.next()).await.unwrap().unwrap(), None);
    let second = LeaderElection::new(&store, "job", "second").unwrap();
    let second = within(second.campaign()).await.unwrap();
    let seen = within(leaders.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((seen.candidate.as_str(), seen.token), ("second", second.fencing_token()));
    within(first.lost()).await;
    assert!(second.is_leader());
}
