//! Records of other versions, and values that are not records.

use serde_json::{Value, json};
use shizuku_kv::Store;
use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LeaderElection, Leaders};

use crate::rw_lock::{handles, within};

async fn record(store: &Store, key: &str) -> Value {
    serde_json::from_slice(&store.get(key).await.unwrap().unwrap().value).unwrap()
}

async fn next(leaders: &mut Leaders) -> Result<Option<String>, DistroRwLockError> {
    let next = within(leaders.next()).await.expect("the stream goes on");
    next.map(|leader| leader.map(|leader| leader.candidate))
}

#[tokio::test]
async fn observe_continues_after_a_foreign_value() {
    for stores in handles(2).await {
        let key = "rw_lock_leader.job";
        let election = LeaderElection::new(&stores[0], "job", "me").unwrap();
        let mut leaders =
            LeaderElection::new(&stores[1], "job", "").unwrap().observe().await.unwrap();
        assert_eq!(next(&mut leaders).await.unwrap(), None);
        for foreign in ["theirs", r#"{"shizuku_lock":2}"#] {
            let leadership = election.campaign().await.unwrap();
            assert_eq!(next(&mut leaders).await.unwrap().as_deref(), Some("me"));
            stores[1].put(key, foreign).await.unwrap();
            let error = next(&mut leaders).await.unwrap_err();
            assert!(matches!(error, DistroRwLockError::ForeignRecord { .. }), "{error:?}");
            within(leadership.lost()).await;
            stores[1].delete(key).await.unwrap();
            assert_eq!(next(&mut leaders).await.unwrap(), None);
        }
        // The same if it exists from the start.
        stores[1].put(key, "theirs").await.unwrap();
        let mut leaders =
            LeaderElection::new(&stores[1], "job", "").unwrap().observe().await.unwrap();
        assert!(next(&mut leaders).await.is_err());
        stores[1].delete(key).await.unwrap();
        assert_eq!(next(&mut leaders).await.unwrap(), None);
    }
}

/// Uses unknown fields in the record, in a grant, and in a claim that waits and is granted.
#[tokio::test]
async fn unknown_fields_survive_a_rewrite() {
    for stores in handles(2).await {
        let store = &stores[0];
        let session = |digit: &str| digit.repeat(32);
        let record_with = json!({
            "shizuku_lock": 1,
            "fence": 3,
            "since_version": [1, {"a": "b"}],
            "holders": [
                {"session": session("1"), "number": 1, "mode": "read", "token": 3, "zone": "a"},
            ],
            "queue": [
                {"session": session("2"), "number": 7, "mode": "write", "label": "next", "zone": {"b": -1.5}},
            ],
        });
        stores[1].put("rw_lock.r", record_with.to_string()).await.unwrap();
        let lock = DistroRwLock::new(store, "r").unwrap();
        assert!(matches!(lock.try_read().await, Err(DistroRwLockError::WouldBlock { .. })));
        // It waits behind both.
        let waiting = tokio::spawn({
            let lock = lock.clone();
            async move { lock.read().await }
        });
        crate::rw_lock::in_line(&lock, 2).await;
        let rewritten = record(&stores[1], "rw_lock.r").await;
        assert_eq!(rewritten["since_version"], json!([1, {"a": "b"}]));
        assert_eq!(rewritten["holders"][0]["zone"], "a");
        assert_eq!(rewritten["queue"][0]["zone"], json!({"b": -1.5}));
        // The first waiter is granted the broken lock.
        lock.break_lock().await.unwrap();
        let rewritten = record(&stores[1], "rw_lock.r").await;
        assert_eq!(rewritten["since_version"], json!([1, {"a": "b"}]));
        assert_eq!(rewritten["holders"][0]["label"], "next");
        assert_eq!(rewritten["holders"][0]["zone"], json!({"b": -1.5}));
        lock.break_lock().await.unwrap();
        waiting.await.unwrap().unwrap().release().await.unwrap();
        assert_eq!(record(&stores[1], "rw_lock.r").await["since_version"], json!([1, {"a": "b"}]));
    }
}

#[tokio::test]
async fn foreign_value_is_left_unchanged() {
    for stores in handles(2).await {
        let (store, lock) = (&stores[0], DistroRwLock::new(&stores[1], "r").unwrap());
        for (foreign, reason) in [
            ("", ""),
            ("theirs", ""),
            ("{}", ""),
            (r#"{"shizuku_lock":2}"#, ""),
            (r#"{"shizuku_lock":1,"fence":"hunter2"}"#, ""),
            (r#"{"shizuku_lock":7,"fence":3,"holders":[],"queue":[]}"#, "format 7"),
        ] {
            let written = store.put("rw_lock.r", foreign).await.unwrap();
            let rejected = [
                lock.write().await.map(drop).unwrap_err(),
                lock.try_write().await.map(drop).unwrap_err(),
                lock.try_read().await.map(drop).unwrap_err(),
                lock.inspect().await.map(drop).unwrap_err(),
                lock.break_lock().await.unwrap_err(),
            ];
            for error in rejected {
                let (text, debug) = (error.to_string(), format!("{error:?}"));
                let is_foreign = matches!(error, DistroRwLockError::ForeignRecord { .. });
                assert!(is_foreign, "{foreign}: {debug}");
                assert!(text.contains("rw_lock.r") && text.contains(reason), "{foreign}: {text}");
                assert!(reason.is_empty() || text.contains("format 1"), "{text}");
                assert!(!debug.contains("hunter2"), "{debug}");
            }
            let found = store.get("rw_lock.r").await.unwrap().unwrap();
            assert_eq!(found.version, written, "{foreign}");
        }
        // A holder at that moment is notified, and the lock works again after the value is gone.
        store.delete("rw_lock.r").await.unwrap();
        let held = lock.write().await.unwrap();
        store.put("rw_lock.r", "theirs").await.unwrap();
        within(held.lost()).await;
        store.delete("rw_lock.r").await.unwrap();
        lock.write().await.unwrap().release().await.unwrap();
    }
}
