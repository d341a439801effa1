//! We read, list and watch the writes of the other client, also next to keys that are not valid for
//! us.

use std::collections::BTreeSet;
use std::time::SystemTime;

use async_nats::HeaderMap;
use async_nats::jetstream::kv;
use bytes::Bytes;
use shizuku_kv::{KvEntry, KvError, KvOperation, KvUpdate, WatchScope};

use super::{World, history_of, listed, names, next, next_entry, revision, scanned, state};

#[tokio::test]
async fn write_of_other_client_is_read() {
    let (world, ours, theirs) =
        World::made_by_them(kv::Config { history: 5, ..kv::Config::default() }).await;
    let one = theirs.put("plain", "one".into()).await.unwrap();
    let two = theirs.update("plain", "two".into(), one).await.unwrap();
    let empty = theirs.put("empty", Bytes::new()).await.unwrap();
    theirs.put("deleted", "x".into()).await.unwrap();
    theirs.delete("deleted").await.unwrap();
    theirs.put("purged", "x".into()).await.unwrap();
    theirs.put("purged", "y".into()).await.unwrap();
    theirs.purge("purged").await.unwrap();
    theirs.put("a/b.c-d_e=", "odd".into()).await.unwrap();

    for store in [ours, world.open_with_leader_reads().await] {
        let entry = store.get("plain").await.unwrap().unwrap();
        assert_eq!((revision(entry.version), entry.value.as_ref()), (two, &b"two"[..]));
        let theirs_created =
            SystemTime::from(theirs.entry("plain").await.unwrap().unwrap().created);
        assert_eq!(entry.created, theirs_created);
        let entry = store.get("empty").await.unwrap().expect("an empty value is a value");
        assert_eq!((revision(entry.version), entry.value.len()), (empty, 0));
        for (key, operation) in [("deleted", KvOperation::Delete), ("purged", KvOperation::Purge)] {
            assert_eq!(store.get(key).await.unwrap(), None, "{key}");
            let entry = store.entry(key).await.unwrap().unwrap();
            assert_eq!(entry.operation, operation, "{key}");
            assert_eq!(
                revision(entry.version),
                theirs.entry(key).await.unwrap().unwrap().revision,
                "{key}"
            );
        }
        assert_eq!(store.entry("never").await.unwrap(), None);

        let keys = ["plain", "deleted", "never", "empty", "purged", "a/b.c-d_e=", "plain"];
        let found = store.get_many(keys).await.unwrap();
        let found: Vec<_> = found.iter().map(|e| e.as_ref().map(|e| e.value.as_ref())).collect();
        assert_eq!(
            found,
            [
                Some(&b"two"[..]),
                None,
                None,
                Some(&b""[..]),
                None,
                Some(&b"odd"[..]),
                Some(&b"two"[..])
            ]
        );
    }
}

#[tokio::test]
async fn writes_of_other_client_are_listed_with_history() {
    let (_world, ours, theirs) =
        World::made_by_them(kv::Config { history: 3, ..kv::Config::default() }).await;
    let mut revisions = Vec::new();
    for number in 0..4 {
        revisions.push(theirs.put("counted", number.to_string().into()).await.unwrap());
    }
    theirs.delete("counted").await.unwrap();
    revisions.push(theirs.entry("counted").await.unwrap().unwrap().revision);
    theirs.put("empty", Bytes::new()).await.unwrap();
    theirs.put("purged", "x".into()).await.unwrap();
    theirs.purge("purged").await.unwrap();
    theirs.put("tree.leaf", "leaf".into()).await.unwrap();
    theirs.put("trees", "wood".into()).await.unwrap();

    assert_eq!(
        history_of(&ours, "counted").await,
        [
            (revisions[2], KvOperation::Put, "2".into()),
            (revisions[3], KvOperation::Put, "3".into()),
            (revisions[4], KvOperation::Delete, Bytes::new()),
        ]
    );
    let purged = history_of(&ours, "purged").await;
    assert_eq!(purged.len(), 1);
    assert_eq!(purged[0].1, KvOperation::Purge);
    assert_eq!(history_of(&ours, "never").await, []);
    assert_eq!(listed(&ours).await, names(["empty", "tree.leaf", "trees"]));
    let scan = scanned(&ours).await;
    assert_eq!(
        scan.keys().cloned().collect::<BTreeSet<_>>(),
        names(["empty", "tree.leaf", "trees"])
    );
    assert_eq!(scan["empty"], "");
    let below = ours.keys(WatchScope::prefix("tree.")).try_collect().await.unwrap();
    assert_eq!(below, ["tree.leaf"]);
}

#[tokio::test]
async fn writes_of_other_client_are_watched() {
    let (_world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    let one = theirs.put("k", "one".into()).await.unwrap();
    theirs.put("empty", Bytes::new()).await.unwrap();
    theirs.put("deleted", "x".into()).await.unwrap();
    theirs.delete("deleted").await.unwrap();
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    assert_eq!((revision(state["k"].version), state["k"].value.as_ref()), (one, &b"one"[..]));
    assert!(!state["empty"].is_tombstone());
    assert!(state.get("deleted").is_none_or(KvEntry::is_tombstone));

    let two = theirs.update("k", "two".into(), one).await.unwrap();
    let entry = next_entry(&mut watch).await;
    assert_eq!((revision(entry.version), entry.operation), (two, KvOperation::Put));
    theirs.put("k", Bytes::new()).await.unwrap();
    let KvUpdate::Put(entry) = next(&mut watch).await else {
        panic!("an empty value is no deletion")
    };
    assert!(entry.value.is_empty());
    theirs.delete("k").await.unwrap();
    let KvUpdate::Delete(entry) = next(&mut watch).await else { panic!("no deletion") };
    assert_eq!(entry.operation, KvOperation::Delete);
    theirs.create("k", "three".into()).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "three");
    theirs.purge("k").await.unwrap();
    let KvUpdate::Delete(entry) = next(&mut watch).await else { panic!("no deletion") };
    assert_eq!(entry.operation, KvOperation::Purge);

    // Resumes from the cursor, and receives their later writes.
    let cursor = watch.cursor().unwrap();
    drop(watch);
    theirs.put("k", "four".into()).await.unwrap();
    let mut watch = ours.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "four");
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
}

#[tokio::test]
async fn keys_that_are_none_of_ours_do_not_disturb() {
    let (world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    let odd = ["_kv.internal", "_kv_other", "colon:here", "umlaut-ü", "star$", "a.percent%20"];
    theirs.put("first", "1".into()).await.unwrap();
    for key in odd {
        world.publish(key, HeaderMap::new(), b"odd").await;
    }
    theirs.put("middle", "2".into()).await.unwrap();
    for key in odd {
        world.publish(key, HeaderMap::new(), b"odd again").await;
    }
    theirs.put(&"k".repeat(1024), "long".into()).await.unwrap();
    world.publish(&"k".repeat(1025), HeaderMap::new(), b"too long").await;

    let long = "k".repeat(1024);
    assert_eq!(listed(&ours).await, names(["first", "middle", &long]));
    assert_eq!(scanned(&ours).await.len(), 3);
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    assert_eq!(state.keys().cloned().collect::<BTreeSet<_>>(), names(["first", "middle", &long]));
    world.publish("_kv.live", HeaderMap::new(), b"odd").await;
    let last = theirs.put("last", "3".into()).await.unwrap();
    assert_eq!(revision(next_entry(&mut watch).await.version), last);

    // Also if nothing else is in scope.
    let scope = WatchScope::prefix("colon");
    assert_eq!(ours.keys(scope.clone()).try_collect().await.unwrap().len(), 0);
    let mut watch = ours.watch(scope).await.unwrap();
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    let refused = ours.get("_kv.internal").await.unwrap_err();
    assert!(matches!(refused, KvError::InvalidKey { .. }), "{refused:?}");
}
