//! One leader among candidates.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::rw_lock::{
    DistroRwLock, DistroRwLockError, LeaderElection, LeaderGuardProcessor, LockLoss, WithLockProcessError,
    processor_fn,
};

use crate::handles;

#[tokio::test]
async fn candidates_lead_one_after_the_other_and_everybody_sees_it() {
    for stores in handles(3).await {
        let [one, two] = [0, 1].map(|n| LeaderElection::new(&stores[n], "job", format!("node-{n}")).unwrap());
        let observer = LeaderElection::new(&stores[2], "job", "").unwrap();
        let mut leaders = observer.observe().await.unwrap();
        assert_eq!(leaders.next().await.unwrap().unwrap(), None);
        let first = one.campaign().await.unwrap();
        let seen = leaders.next().await.unwrap().unwrap().unwrap();
        assert_eq!((seen.candidate.as_str(), seen.token), ("node-0", first.fencing_token()));
        assert!(matches!(two.try_campaign().await, Err(DistroRwLockError::WouldBlock { .. })));
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { two.campaign().await.unwrap() }
        });
        let in_line = async {
            // A lock of the same name is another one.
            let lock = DistroRwLock::new(&stores[2], "job").unwrap();
            assert!(lock.inspect().await.unwrap().holders.is_empty());
            let record = || async { stores[2].get("rw_lock_leader.job").await.unwrap().unwrap().value };
            while !String::from_utf8_lossy(&record().await).contains("node-1") {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), in_line).await.unwrap();
        assert!(first.is_leader() && first.candidate() == "node-0");
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
async fn only_a_leader_does_the_work() {
    for stores in handles(2).await {
        let election = LeaderElection::new(&stores[0], "job", "me").unwrap();
        let leadership = Arc::new(election.campaign().await.unwrap());
        let deposed = DistroRwLock::new(&stores[1], "x").unwrap();
        drop(deposed);
        let record = stores[1].clone();
        let work = processor_fn(move |is_deposed: bool| {
            let record = record.clone();
            async move {
                if is_deposed {
                    // What breaks an election is an operator who removes its record.
                    record.delete("rw_lock_leader.job").await.unwrap();
                    std::future::pending::<()>().await;
                }
                Ok::<_, std::convert::Infallible>(7)
            }
        });
        let guarded = LeaderGuardProcessor::new(Arc::new(work), Arc::clone(&leadership)).ends_when_lost();
        assert_eq!(guarded.process(false).await.unwrap(), 7);
        let lost = tokio::time::timeout(Duration::from_secs(20), guarded.process(true)).await.unwrap();
        let lost = lost.unwrap_err();
        assert!(matches!(lost, WithLockProcessError::LeaseLost { reason: LockLoss::Broken, .. }), "{lost:?}");
        assert!(!leadership.is_leader());
        let late = guarded.process(false).await.unwrap_err();
        assert!(matches!(late, WithLockProcessError::Lock(DistroRwLockError::LeaseLost { .. })), "{late:?}");
    }
}

#[tokio::test]
async fn an_observer_outlives_a_store_that_is_made_again() {
    let server = shizuku_kv_tests::NatsServer::start();
    let connection = shizuku_kv::connect(&server.url()).await.unwrap();
    let store = connection.store("b").await.unwrap();
    let election = LeaderElection::new(&store, "job", "me").unwrap();
    let leadership = election.campaign().await.unwrap();
    let mut leaders = election.observe().await.unwrap();
    assert!(leaders.next().await.unwrap().unwrap().is_some());
    connection.delete_store("b").await.unwrap();
    // Whether the observer sees the store gone or made again is up to the moment: one ends it, the other does not.
    let gone = tokio::time::timeout(Duration::from_secs(20), leadership.lost()).await.unwrap();
    assert!(
        matches!(gone, LockLoss::StoreGone | LockLoss::Broken | LockLoss::Expired | LockLoss::Evicted),
        "{gone:?}"
    );
    let ended = tokio::time::timeout(Duration::from_secs(20), leaders.next()).await.unwrap();
    assert!(matches!(ended, None | Some(Err(_)) | Some(Ok(None))), "{ended:?}");
    // It is there again, and so are elections.
    let store = connection.store("b").await.unwrap();
    let election = LeaderElection::new(&store, "job", "me").unwrap();
    assert!(election.campaign().await.unwrap().is_leader());
}
