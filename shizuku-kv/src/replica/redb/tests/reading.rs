//! Tests of readers beside a storage, and of the `Debug` output.

use super::*;
use bytes::Bytes;

#[tokio::test]
async fn reader_sees_each_commit_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut storage = open(directory.path().join("replica.redb")).await;
    let reader = storage.reader();
    assert_eq!((reader.len().unwrap(), reader.checkpoint().unwrap()), (0, None));
    storage
        .commit(&[put("b.1", 1), put("a", 2), put("b.2", 3), put("c", 4)], Some(&checkpoint(4)))
        .unwrap();
    let scan = reader.scan("b.").unwrap();
    let all = reader.clone().scan("").unwrap();
    storage.commit(&[delete("b.1", 5), put("b.3", 6), put("a", 7)], None).unwrap();
    // A scan that was begun earlier is not affected.
    let keys = scan.map(|entry| entry.unwrap().key.to_string()).collect::<Vec<_>>();
    assert_eq!(keys, ["b.1", "b.2"]);
    assert_eq!(
        all.map(|entry| entry.unwrap().version.as_u64().unwrap()).collect::<Vec<_>>(),
        [2, 1, 3, 4]
    );
    let now = [("a", 7), ("b.2", 3), ("b.3", 6), ("c", 4)]
        .map(|(key, version)| (key.to_owned(), version));
    assert_eq!(content(&reader), now);
    assert_eq!(
        (reader.len().unwrap(), reader.is_empty().unwrap(), reader.checkpoint().unwrap()),
        (4, false, None)
    );
    let KvUpdate::Put(expected) = put("b.3", 6) else { panic!() };
    assert_eq!(reader.get("b.3").unwrap(), Some(expected));
    for absent in ["b.1", "b", "", "no key, never", "b.3.x"] {
        assert_eq!(reader.get(absent).unwrap(), None, "{absent}");
    }
    assert_eq!(reader.scan("d").unwrap().count(), 0);
    assert_eq!(reader.scan("no key").unwrap().count(), 0);
}

#[tokio::test]
async fn readers_of_a_closed_storage_get_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.redb");
    let mut storage = open(&path).await;
    let large = Bytes::from(vec![b'v'; 100_000]);
    let entry = |number| {
        let key = Key::new(format!("key.{number}")).unwrap();
        KvUpdate::Put(KvEntry::put(
            key,
            large.clone(),
            VersionToken::from_u64(1),
            SystemTime::UNIX_EPOCH,
        ))
    };
    storage.commit(&(100..200).map(entry).collect::<Vec<_>>(), Some(&checkpoint(1))).unwrap();
    storage.close().unwrap();
    let storage = RedbStorage::open(&path, RedbOptions::new().cache_size(0)).await.unwrap();
    let reader = storage.reader();
    let mut scan = reader.scan("").unwrap();
    scan.next().unwrap().unwrap();
    drop(storage);
    for error in
        [reader.get("a").unwrap_err(), reader.scan("").unwrap_err(), reader.len().unwrap_err()]
    {
        is_in_order(&error, &path);
        assert!(error.to_string().contains("is closed"), "{error}");
    }
    // The scan may have read ahead, but it ends with an error that says that entries are missing.
    let error = scan.find_map(Result::err).unwrap();
    assert!(error.to_string().contains("is closed"), "{error}");
    assert!(scan.next().is_none());
    assert_eq!(open(&path).await.checkpoint().unwrap(), Some(checkpoint(1)));
}

#[tokio::test]
async fn debug_shows_no_value() {
    let directory = tempfile::tempdir().unwrap();
    let mut storage = open(directory.path().join("replica.redb")).await;
    storage.commit(&[put("a", 1)], Some(&checkpoint(1))).unwrap();
    let reader = storage.reader();
    let scan = reader.scan("").unwrap();
    let text = format!("{storage:?} {reader:?} {scan:?} {:?}", RedbOptions::new());
    assert!(!text.contains(SECRET) && text.contains("replica.redb"), "{text}");
}

#[test]
fn commit_is_durable_when_it_is_due() {
    let interval = RedbSync::Interval(Duration::from_secs(2));
    assert!(RedbSync::EveryCheckpoint.is_due(Duration::ZERO));
    assert!(!interval.is_due(Duration::from_millis(1999)));
    assert!(interval.is_due(Duration::from_secs(2)));
    assert!(!RedbSync::Never.is_due(Duration::MAX));
}
