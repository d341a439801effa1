//! Several writes in one commit.

use std::time::Duration;

use shizuku_kv::{Atomicity, Key, KvError, Store, WatchScope, Write, connect};
use tempfile::tempdir;

const DEADLINE: Duration = Duration::from_secs(20);

async fn write_all(store: &Store, writes: Vec<(&str, Write)>) -> Vec<Result<u64, KvError>> {
    let writes = writes.into_iter().map(|(key, write)| (Key::new(key).unwrap(), write)).collect();
    let writer = store.backend().writer().unwrap();
    let answers = writer.write_many(writes, Atomicity::All, DEADLINE).await;
    answers.into_iter().map(|answer| answer.map(|version| version.as_u64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_writes_happen_together_or_not_at_all() {
    for options in ["", "?exclusive=true", "?shared=true"] {
        let folder = tempdir().unwrap();
        let url = format!("file:{}/data{options}", folder.path().display());
        let store = connect(&url).await.unwrap().store("config").await.unwrap();
        assert!(store.capabilities().atomic_writes);
        let written = write_all(
            &store,
            vec![("a", Write::create("1")), ("b", Write::put("1")), ("a", Write::put("2"))],
        );
        let versions: Vec<u64> = written.await.into_iter().map(Result::unwrap).collect();
        assert_eq!(versions, [1, 2, 3]);
        // The last is rejected, and so are the others.
        let rejected = write_all(
            &store,
            vec![("c", Write::put("3")), ("b", Write::delete()), ("a", Write::create("3"))],
        );
        let rejected = rejected.await;
        assert_eq!(rejected.len(), 3);
        for answer in rejected {
            let error = answer.unwrap_err();
            assert!(matches!(&error, KvError::AlreadyExists { key, .. } if *key == "a"), "{error}");
        }
        let mut keys = store.keys(WatchScope::All).try_collect().await.unwrap();
        keys.sort();
        assert_eq!(keys, ["a", "b"]);
        // No version was used by the rejected writes.
        assert_eq!(store.put("d", "4").await.unwrap().as_u64(), Some(4));
        assert!(write_all(&store, Vec::new()).await.is_empty());
    }
}
