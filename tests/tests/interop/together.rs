//! Both clients write the same keys: swaps compare with each other, and the history is one.

use async_nats::jetstream::kv;
use bytes::Bytes;
use futures_util::TryStreamExt;
use shizuku_kv::{KvError, KvOperation, VersionToken, WatchScope};

use super::{World, history_of, revision, state};

#[tokio::test]
async fn swaps_of_both_clients_compare_with_each_other() {
    let (_world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    // Their write, then ours, then theirs.
    let one = theirs.create("k", "one".into()).await.unwrap();
    let two = ours.update("k", "two", VersionToken::from_u64(one)).await.unwrap();
    let three = theirs.update("k", "three".into(), revision(two)).await.unwrap();

    // Each loses against the other.
    let lost = ours.update("k", "lost", two).await.unwrap_err();
    let KvError::RevisionMismatch { found, .. } = lost else { panic!("{lost:?}") };
    assert_eq!(found, Some(VersionToken::from_u64(three)));
    let lost = ours.create("k", "lost").await.unwrap_err();
    assert!(matches!(lost, KvError::AlreadyExists { .. }), "{lost:?}");
    let lost = ours.delete_with_version("k", two).await.unwrap_err();
    assert!(lost.is_conflict(), "{lost:?}");
    let four = ours.update("k", "four", VersionToken::from_u64(three)).await.unwrap();
    let lost = theirs.update("k", "lost".into(), three).await.unwrap_err();
    assert_eq!(lost.kind(), kv::UpdateErrorKind::WrongLastRevision);
    let lost = theirs.create("k", "lost".into()).await.unwrap_err();
    assert_eq!(lost.kind(), kv::CreateErrorKind::AlreadyExists);
    assert_eq!(theirs.get("k").await.unwrap().unwrap(), "four");

    // Swaps over the other's tombstones, of either kind.
    theirs.delete_expect_revision("k", Some(revision(four))).await.unwrap();
    let lost = ours.update("k", "lost", four).await.unwrap_err();
    assert!(matches!(lost, KvError::RevisionMismatch { .. }), "{lost:?}");
    ours.create("k", "five").await.unwrap();
    theirs.purge("k").await.unwrap();
    let six = ours.create("k", "six").await.unwrap();
    ours.delete_with_version("k", six).await.unwrap();
    theirs.create("k", "seven".into()).await.unwrap();
    ours.purge("k").await.unwrap();
    let eight = theirs.create("k", "eight".into()).await.unwrap();
    ours.delete_with_version("k", VersionToken::from_u64(eight)).await.unwrap();
    assert_eq!(theirs.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn history_of_64_is_read_in_full() {
    let (_world, ours, theirs) =
        World::made_by_them(kv::Config { history: 64, ..kv::Config::default() }).await;
    let mut expected = Vec::new();
    for number in 0..70_u32 {
        let value = number.to_string();
        let written = match number % 3 {
            0 => theirs.put("k", value.clone().into()).await.unwrap(),
            1 => revision(ours.put("k", value.clone()).await.unwrap()),
            _ => revision(ours.delete("k").await.unwrap()),
        };
        let operation = if number % 3 == 2 { KvOperation::Delete } else { KvOperation::Put };
        let value = if number % 3 == 2 { Bytes::new() } else { value.into() };
        expected.push((written, operation, value));
    }
    assert_eq!(history_of(&ours, "k").await, expected[6..]);
    let history: Vec<_> = theirs.history("k").await.unwrap().try_collect().await.unwrap();
    assert_eq!(history.len(), 64);
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    assert_eq!(revision(state["k"].version), expected[69].0);
}
