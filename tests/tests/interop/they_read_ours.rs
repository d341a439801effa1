//! The other client reads, lists and watches our writes.

use std::collections::BTreeSet;
use std::time::SystemTime;

use async_nats::jetstream::kv;
use bytes::Bytes;
use futures_util::TryStreamExt;
use shizuku_kv::StoreConfig;

use super::{World, names, next_of_theirs, revision, scanned};

#[tokio::test]
async fn our_write_is_read_by_other_client() {
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new().history(5)).await;
    let one = ours.create("plain", "one").await.unwrap();
    let two = ours.update("plain", "two", one).await.unwrap();
    let empty = ours.put("empty", "").await.unwrap();
    let binary = (0..=255_u8).collect::<Vec<_>>();
    ours.put("a/b.c-d_e=", binary.clone()).await.unwrap();

    assert_eq!(theirs.get("plain").await.unwrap().as_deref(), Some(&b"two"[..]));
    assert_eq!(theirs.get("empty").await.unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(theirs.get("a/b.c-d_e=").await.unwrap().as_deref(), Some(&binary[..]));
    let entry = theirs.entry("plain").await.unwrap().unwrap();
    assert_eq!((entry.revision, entry.operation), (revision(two), kv::Operation::Put));
    let entry = theirs.entry("empty").await.unwrap().unwrap();
    assert_eq!((entry.revision, entry.operation), (revision(empty), kv::Operation::Put));
    let before = theirs.entry_for_revision("plain", revision(one)).await.unwrap().unwrap();
    assert_eq!(before.value, "one");
    let created = ours.get("plain").await.unwrap().unwrap().created;
    let theirs_created = SystemTime::from(theirs.entry("plain").await.unwrap().unwrap().created);
    assert_eq!(created, theirs_created);
}

#[tokio::test]
async fn our_deletion_is_a_deletion_for_other_client() {
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new().history(5)).await;
    for key in ["deleted", "swapped", "purged"] {
        ours.put(key, "one").await.unwrap();
        ours.put(key, "two").await.unwrap();
    }
    let deleted = ours.delete("deleted").await.unwrap();
    let version = ours.get("swapped").await.unwrap().unwrap().version;
    let swapped = ours.delete_with_version("swapped", version).await.unwrap();
    let purged = ours.purge("purged").await.unwrap();

    for (key, version, operation, versions) in [
        ("deleted", deleted, kv::Operation::Delete, 3),
        ("swapped", swapped, kv::Operation::Delete, 3),
        ("purged", purged, kv::Operation::Purge, 1),
    ] {
        assert_eq!(theirs.get(key).await.unwrap(), None, "{key}");
        let entry = theirs.entry(key).await.unwrap().unwrap();
        assert_eq!((entry.revision, entry.operation), (revision(version), operation), "{key}");
        let history: Vec<_> = theirs.history(key).await.unwrap().try_collect().await.unwrap();
        assert_eq!(history.len(), versions, "{key}");
        assert_eq!(history.last().unwrap().operation, operation, "{key}");
    }
    let keys: Vec<String> = theirs.keys().await.unwrap().try_collect().await.unwrap();
    assert!(keys.is_empty(), "{keys:?}");
    theirs.create("deleted", "again".into()).await.unwrap();
    theirs.create("purged", "again".into()).await.unwrap();
    assert_eq!(
        scanned(&ours).await.keys().cloned().collect::<BTreeSet<_>>(),
        names(["deleted", "purged"])
    );
}

#[tokio::test]
async fn our_writes_are_listed_with_history_by_other_client() {
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new().history(3)).await;
    let mut versions = Vec::new();
    for number in 0..5 {
        versions.push(revision(ours.put("counted", number.to_string()).await.unwrap()));
    }
    ours.put("empty", "").await.unwrap();
    ours.put("gone", "x").await.unwrap();
    ours.delete("gone").await.unwrap();
    let many = (0..50).map(|n| (format!("many.{n}"), format!("{n}")));
    for answer in ours.put_many(many).await {
        answer.unwrap();
    }

    let history: Vec<_> = theirs.history("counted").await.unwrap().try_collect().await.unwrap();
    let history: Vec<_> = history.into_iter().map(|e| (e.revision, e.value)).collect();
    let expected: Vec<_> = (2..5).map(|n| (versions[n], Bytes::from(n.to_string()))).collect();
    assert_eq!(history, expected);
    let keys: BTreeSet<String> = theirs.keys().await.unwrap().try_collect().await.unwrap();
    assert_eq!(keys.len(), 52);
    assert!(keys.contains("counted") && keys.contains("empty") && keys.contains("many.49"));
    for n in [0, 17, 49] {
        assert_eq!(theirs.get(format!("many.{n}")).await.unwrap().unwrap(), n.to_string());
    }
}

#[tokio::test]
async fn our_writes_are_watched_by_other_client() {
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new()).await;
    let first = ours.put("k", "first").await.unwrap();
    let mut watch = theirs.watch_with_history(">").await.unwrap();
    let entry = next_of_theirs(&mut watch).await;
    assert_eq!((entry.revision, entry.value.as_ref()), (revision(first), &b"first"[..]));

    // Writes one after the other, because a value that is replaced before its delivery may be
    // skipped.
    let mut expect = async |version, operation, value: &str| {
        let entry = next_of_theirs(&mut watch).await;
        assert_eq!(entry.key, "k");
        assert_eq!((entry.revision, entry.operation), (revision(version), operation));
        assert_eq!(entry.value, value.to_owned());
    };
    let update = ours.update("k", "second", first).await.unwrap();
    expect(update, kv::Operation::Put, "second").await;
    let empty = ours.put("k", "").await.unwrap();
    expect(empty, kv::Operation::Put, "").await;
    let deleted = ours.delete("k").await.unwrap();
    expect(deleted, kv::Operation::Delete, "").await;
    let created = ours.create("k", "third").await.unwrap();
    expect(created, kv::Operation::Put, "third").await;
    let purged = ours.purge("k").await.unwrap();
    expect(purged, kv::Operation::Purge, "").await;
}
