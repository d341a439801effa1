//! Resyncs on the backends: the causes of an expired cursor there, and the reaction of a replica.

use shizuku_kv::Store;

use crate::disk::Disk;
use crate::support::{follow, sorted, stores, write};

/// Runs a replica until it is caught up, and returns its updates.
async fn catch_up(store: &Store, disk: &Disk) -> (Vec<String>, u64) {
    let mut follower = follow(store, disk);
    let told = follower.asks.up_to(".").await;
    let monitor = follower.monitor.clone();
    let (_, _, last) = follower.stop().await;
    assert_eq!(last, [""; 0]);
    (told, monitor.progress().resyncs)
}

#[tokio::test]
async fn recreated_bucket_is_resynced() {
    for (connection, store) in stores().await {
        let disk = Disk::new();
        write(&store, &["a=1", "b=1", "c=1"]).await;
        catch_up(&store, &disk).await;
        connection.delete_store(store.name()).await.unwrap();
        let again = connection.store(store.name()).await.unwrap();
        // The same key has the same version, with the same and with another value.
        write(&again, &["a=1", "b=2"]).await;
        let (told, resyncs) = catch_up(&again, &disk).await;
        assert_eq!((told, resyncs), (vec!["a=1".into(), "b=2".into(), "~c".into(), ".".into()], 1));
        assert_eq!(disk.words(), ["a=1", "b=2"]);
        assert_eq!(catch_up(&again, &disk).await, (vec![".".to_owned()], 0));
    }
}

#[tokio::test]
async fn resync_of_compacted_bucket_delivers_changes_only() {
    for (_connection, store) in stores().await {
        let disk = Disk::new();
        write(&store, &["a=1", "b=1", "key=1"]).await;
        catch_up(&store, &disk).await;
        // Every entry is written again, so that only `b` remains of the entries that the cursor
        // covers.
        write(&store, &["a=2", "key=2", "key=3", "c=1", "-a"]).await;
        let (told, resyncs) = catch_up(&store, &disk).await;
        if resyncs == 0 {
            // `b` is older than the cursor, so there is no gap.
            assert_eq!(told, ["key=3", "c=1", "-a", "."]);
        }
        write(&store, &["b=2", "b=3", "key=4"]).await;
        let (told, _) = catch_up(&store, &disk).await;
        assert_eq!(told.last().map(String::as_str), Some("."));
        assert_eq!(disk.words(), ["b=3", "c=1", "key=4"]);
        // Every entry that the cursor covers is superseded, and so is one before its end.
        write(&store, &["c=2", "key=5", "b=4", "-a", "c=3", "key=6", "b=5"]).await;
        let (told, resyncs) = catch_up(&store, &disk).await;
        assert_eq!(
            (sorted(told), resyncs),
            (vec!["-a".into(), ".".into(), "b=5".into(), "c=3".into(), "key=6".into()], 1)
        );
        assert_eq!(disk.words(), ["b=5", "c=3", "key=6"]);
    }
}

#[tokio::test]
async fn purged_and_deleted_keys_are_delivered() {
    for (_connection, store) in stores().await {
        let disk = Disk::new();
        write(&store, &["a=1", "b=1", "c=1"]).await;
        catch_up(&store, &disk).await;
        store.purge("a").await.unwrap();
        write(&store, &["-b"]).await;
        let (told, resyncs) = catch_up(&store, &disk).await;
        assert_eq!((told, resyncs), (vec!["-a".into(), "-b".into(), ".".into()], 0));
        assert_eq!(disk.words(), ["c=1"]);
    }
}
