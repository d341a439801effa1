//! The updates that `apply` receives, and their order.

use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{MemoryStorage, Replica};
use shizuku_kv::{BatchConfig, KvUpdate, WatchScope, watch_applied};

use crate::disk::Disk;
use crate::support::{Follower, asking, follow, stores, told, write};

#[tokio::test]
async fn state_precedes_the_marker_and_every_change() {
    for (_connection, store) in stores().await {
        write(&store, &["c=1", "a=1", "b=1", "c=2"]).await;
        let disk = Disk::new();
        let mut follower = follow(&store, &disk);
        assert_eq!(follower.asks.up_to(".").await, ["a=1", "b=1", "c=2", "."]);
        for n in 0..20 {
            write(&store, &[&format!("a={n}"), &format!("b={n}")]).await;
            let told = follower.asks.up_to(&format!("b={n}")).await;
            assert_eq!(told, [format!("a={n}"), format!("b={n}")]);
        }
        write(&store, &["-a", "b=", "-absent"]).await;
        assert_eq!(follower.asks.up_to("-absent").await, ["-a", "b=", "-absent"]);
        store.purge("b").await.unwrap();
        assert_eq!(follower.asks.up_to("-b").await, ["-b"]);
        follower.stop().await;
        assert_eq!(disk.words(), ["c=2"]);
    }
}

#[tokio::test]
async fn empty_scope_has_marker_and_no_other_update() {
    for (_connection, store) in stores().await {
        write(&store, &["out.a=1"]).await;
        let mut follower = Follower::start(Replica::new(&store, WatchScope::prefix("in.")));
        let first = follower.asks.next().await.done();
        assert_eq!((told(&first), first.is_caught_up()), (vec![".".to_owned()], true));
        write(&store, &["out.b=1", "in.a=1", "-out.a"]).await;
        assert_eq!(follower.asks.up_to("in.a=1").await, ["in.a=1"]);
        let (_, _, last) = follower.stop().await;
        assert_eq!(last, [""; 0]);
    }
}

#[tokio::test]
async fn commit_has_applied_batch_and_its_cursor() {
    for (_connection, store) in stores().await {
        write(&store, &["a=1", "b=1"]).await;
        let disk = Disk::new();
        let replica = Replica::new(&store, WatchScope::All).storage(disk.clone());
        let mut follower = Follower::start(replica.batch(BatchConfig::new().max_updates(1)));
        let mut applied = Vec::new();
        while applied.len() < 5 {
            if applied.len() == 3 {
                write(&store, &["c=1", "-a"]).await;
            }
            applied.push(follower.asks.next().await.done());
        }
        let (_, end, _) = follower.stop().await;
        let commits = disk.commits();
        assert_eq!(commits.len(), 5);
        for (batch, commit) in applied.iter().zip(&commits) {
            assert_eq!(told(batch), commit.words);
            assert_eq!(batch.cursor(), commit.checkpoint.map(|checkpoint| checkpoint.cursor()));
            assert!(batch.cursor().is_some());
        }
        assert_eq!(end, applied.last().unwrap().cursor());
        assert!(
            applied.iter().zip(&applied[1..]).all(|(one, next)| position(one) <= position(next))
        );
    }
}

fn position(batch: &shizuku_kv::replica::Batch) -> u64 {
    batch.cursor().unwrap().position()
}

#[tokio::test]
async fn watch_applied_runs_a_replica() {
    for (_connection, store) in stores().await {
        write(&store, &["in.a=1", "out.a=1"]).await;
        let (disk, stop) = (Disk::new(), CancellationToken::new());
        let (asker, mut asks) = asking();
        let config = BatchConfig::new().max_updates(1);
        let run = watch_applied(
            &store,
            WatchScope::prefix("in."),
            disk.clone(),
            config,
            stop.clone(),
            asker.apply(),
        );
        let test = async {
            assert_eq!(asks.done().await, ["in.a=1"]);
            let ask = asks.next().await;
            assert_eq!(ask.told(), ["."]);
            stop.cancel();
            ask.done().cursor()
        };
        let (end, last) = tokio::join!(run, test);
        assert_eq!(end.unwrap(), last);
        assert_eq!(disk.words(), ["in.a=1"]);
        assert_eq!(disk.cursor(), last);
    }
}

/// Uses the storage that keeps no values.
#[tokio::test]
async fn batch_clone_shares_the_entries_of_the_store() {
    for (_connection, store) in stores().await {
        let version = store.put("a", "1").await.unwrap();
        let entry = store.get("a").await.unwrap().unwrap();
        let mut follower =
            Follower::start(Replica::new(&store, WatchScope::All).storage(MemoryStorage::new()));
        let batch = follower.asks.next().await.done();
        let copy = batch.clone();
        assert_eq!(copy.updates().as_ptr(), batch.updates().as_ptr());
        assert_eq!(copy.updates()[0], KvUpdate::Put(entry));
        assert_eq!(copy.updates()[0].entry().unwrap().version, version);
        follower.stop().await;
    }
}
