//! Reads, writes and scans.

use super::*;

#[tokio::test(start_paused = true)]
async fn read_after_a_write_returns_it() {
    let store = store(StoreConfig::new().history(2)).await;
    let first = store.create("a", "1").await.unwrap();
    let second = store.update("a", "2", first).await.unwrap();
    store.put("b", "").await.unwrap();
    store.delete("c").await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().version, second);
    assert!(store.get("b").await.unwrap().unwrap().value.is_empty());
    assert!(store.get("c").await.unwrap().is_none());
    assert_eq!(store.entry("c").await.unwrap().unwrap().operation, KvOperation::Delete);
    let many = store.get_many(["c", "a", "x", "a"]).await.unwrap();
    let many: Vec<_> = many.iter().map(|entry| entry.as_ref().map(text)).collect();
    assert_eq!(many, [None, Some("2".to_owned()), None, Some("2".to_owned())]);
    let history = store.history("a").unwrap().try_collect().await.unwrap();
    assert_eq!(history.iter().map(text).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(keys(&store, WatchScope::All).await, ["a", "b"]);
    assert_eq!(keys(&store, WatchScope::key("b").unwrap()).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn conflict_names_the_version_found() {
    let store = store(StoreConfig::new()).await;
    let first = store.put("a", "1").await.unwrap();
    let second = store.put("a", "2").await.unwrap();
    match store.update("a", "3", first).await.unwrap_err() {
        KvError::RevisionMismatch { expected, found, .. } => {
            assert_eq!((expected, found), (first, Some(second)));
        }
        other => panic!("{other}"),
    }
    match store.create("a", "3").await.unwrap_err() {
        KvError::AlreadyExists { found, .. } => assert_eq!(found, Some(second)),
        other => panic!("{other}"),
    }
    match store.delete_with_version("never", first).await.unwrap_err() {
        KvError::RevisionMismatch { found, .. } => assert_eq!(found, None),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn put_many_writes_in_order() {
    let store = store(StoreConfig::new().max_value_size(3)).await;
    let items = (0..600).map(|number| (format!("k.{}", number % 2), number.to_string()));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
    assert_eq!(text(&store.get("k.1").await.unwrap().unwrap()), "599");
    let answers = store.put_many([("a", "1"), ("a..b", "2"), ("b", "long"), ("c", "3")]).await;
    assert!(answers[0].is_ok() && answers[3].is_ok());
    assert!(matches!(answers[1], Err(KvError::InvalidKey { .. })));
    assert!(matches!(answers[2], Err(KvError::ValueTooLarge { size: 4, limit: 3, .. })));
}

#[tokio::test(start_paused = true)]
async fn put_into_a_full_store_is_rejected() {
    let store = store(StoreConfig::new().max_bytes(10)).await;
    store.put("a", "12345").await.unwrap();
    let full = store.put("b", "12345").await.unwrap_err();
    assert!(matches!(full, KvError::StoreFull { .. }), "{full}");
    assert!(full.to_string().contains("10 bytes"), "{full}");
    store.put("a", "123456789").await.unwrap();
    store.delete("a").await.unwrap();
    store.put("b", "12345").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn scan_delivers_each_lasting_key_exactly_once() {
    let store = store(StoreConfig::new()).await;
    for number in 0..1000 {
        store.put(format!("stays.{number:04}"), "1").await.unwrap();
        store.put(format!("goes.{number:04}"), "1").await.unwrap();
    }
    let mut random = fastrand::Rng::with_seed(1);
    let mut met = BTreeMap::<String, usize>::new();
    let scan = store.scan(WatchScope::All);
    while let Some(entry) = scan.next().await {
        *met.entry(entry.unwrap().key.to_string()).or_default() += 1;
        let number = random.u32(..1000);
        store.put(format!("stays.{number:04}"), "2").await.unwrap();
        store.put(format!("comes.{number:04}"), "1").await.unwrap();
        store.delete(format!("goes.{:04}", random.u32(..1000))).await.unwrap();
    }
    assert!(met.values().all(|&times| times == 1));
    assert_eq!(met.keys().filter(|key| key.starts_with("stays.")).count(), 1000);
}

#[tokio::test(start_paused = true)]
async fn scan_delivers_only_live_keys_of_its_scope() {
    let store = store(StoreConfig::new()).await;
    for number in 0..700 {
        store.put(format!("a.{number:03}"), "").await.unwrap();
        store.put(format!("b.{number:03}"), "").await.unwrap();
    }
    for number in 0..600 {
        store.delete(format!("b.{number:03}")).await.unwrap();
    }
    assert_eq!(keys(&store, WatchScope::prefix("b.")).await.len(), 100);
    assert_eq!(keys(&store, WatchScope::prefixes(["b.69", "a.00", "a.001", "x"])).await.len(), 20);
    assert_eq!(keys(&store, WatchScope::key("a.5").unwrap()).await.len(), 0);
    assert_eq!(keys(&store, WatchScope::Prefixes(vec![])).await.len(), 0);
}
