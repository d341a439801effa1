//! Writes whose request or acknowledgement is lost: each took effect once or not at all, and the
//! caller learns which.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

use std::time::Duration;

use shizuku_kv::{KvError, KvOperation, KvResult, StoreConfig, VersionToken, connect};
use shizuku_kv_tests::eventually;

use super::proxied::{Proxied, send, version};

/// Runs a write whose acknowledgement is lost: the server accepts it, then the connection is cut.
/// `meanwhile` runs between the two.
async fn lose_acknowledgement(
    f: &Proxied,
    key: &str,
    write: impl Future<Output = KvResult<VersionToken>>,
    meanwhile: impl Future<Output = ()>,
) -> KvResult<VersionToken> {
    let before = f.version(key).await;
    f.proxy.hold_answers(true);
    let cut = async {
        f.has_write(key, before).await;
        meanwhile.await;
        f.proxy.cut();
    };
    tokio::join!(write, cut).0
}

/// Runs a write whose request is lost: the proxy holds it back, then the connection is cut.
async fn lose_request(
    f: &Proxied,
    write: impl Future<Output = KvResult<VersionToken>>,
    meanwhile: impl Future<Output = ()>,
) -> KvResult<VersionToken> {
    f.proxy.hold_requests(true);
    let cut = async {
        send().await;
        meanwhile.await;
        f.proxy.cut();
    };
    tokio::join!(write, cut).0
}

/// A write that landed is found by its id, and a swap is no conflict with itself.
#[tokio::test]
async fn landed_write_is_found_by_its_id() {
    use KvOperation::{Delete, Purge, Put};
    for (operation, history, kind, count) in [
        ("put", 5, Put, 1),
        ("create", 5, Put, 1),
        ("update", 1, Put, 1),
        ("update", 5, Put, 2),
        ("delete_with_version", 5, Delete, 2),
        ("purge", 5, Purge, 1),
    ] {
        println!("{operation}, history {history}");
        let f = Proxied::new(history).await;
        let is_first = matches!(operation, "put" | "create");
        let first = if is_first { None } else { Some(f.behind.put("key", "one").await.unwrap()) };
        let write = async {
            match (operation, first) {
                ("put", _) => f.behind.put("key", "value").await,
                ("create", _) => f.behind.create("key", "value").await,
                ("update", Some(first)) => f.behind.update("key", "two", first).await,
                ("purge", _) => f.behind.purge("key").await,
                (_, first) => f.behind.delete_with_version("key", first.unwrap()).await,
            }
        };
        let written = version(lose_acknowledgement(&f, "key", write, async {}).await);
        let entries = f.entries("key").await;
        assert_eq!(entries.last(), Some(&(written, kind, None)), "{operation}, history {history}");
        assert_eq!(entries.len(), count, "{operation}, history {history}: {entries:?}");
    }
}

#[tokio::test]
async fn swap_that_was_lost_is_repeated_once() {
    let f = Proxied::new(5).await;
    let written = version(lose_request(&f, f.behind.create("create", "value"), async {}).await);
    assert_eq!(f.entries("create").await, [(written, KvOperation::Put, None)]);
    let first = f.behind.put("update", "one").await.unwrap();
    let written =
        version(lose_request(&f, f.behind.update("update", "two", first), async {}).await);
    assert_eq!(f.entries("update").await.len(), 2);
    assert_eq!(f.entries("update").await.last(), Some(&(written, KvOperation::Put, None)));
    let delete = f
        .behind
        .delete_with_version("create", f.direct.get("create").await.unwrap().unwrap().version);
    let written = version(lose_request(&f, delete, async {}).await);
    assert_eq!(f.entries("create").await.last(), Some(&(written, KvOperation::Delete, None)));
}

/// Its first copy may still be in transit, and a second could undo a write of another client.
#[tokio::test]
async fn write_without_expectation_is_never_repeated() {
    let f = Proxied::new(5).await;
    let put = lose_request(&f, f.behind.put("put", "value"), async {}).await;
    assert!(matches!(put, Err(KvError::OutcomeUnknown { .. })), "{put:?}");
    let delete = lose_request(&f, f.behind.delete("delete"), async {}).await;
    assert!(matches!(delete, Err(KvError::OutcomeUnknown { .. })), "{delete:?}");
    // After a later write has arrived, a repeated copy would have arrived too.
    f.behind.put("later", "x").await.unwrap();
    assert_eq!(f.entries("put").await, []);
    assert_eq!(f.entries("delete").await, []);
}

/// The bucket is not the one whose sequences the client has seen.
#[tokio::test]
async fn recreated_bucket_does_not_prove_a_lost_write() {
    let f = Proxied::new(1).await;
    for _ in 0..50 {
        f.behind.put("other", "x").await.unwrap();
    }
    let connection = connect(&f.server.url()).await.unwrap();
    connection.delete_store("b").await.unwrap();
    connection.store("b").await.unwrap();
    let first = f.behind.put("key", "one").await.unwrap();
    let replace = async {
        f.direct.put("key", "other").await.unwrap();
    };
    let update = f.behind.update("key", "two", first);
    let result = lose_acknowledgement(&f, "key", update, replace).await;
    assert!(matches!(result, Err(KvError::OutcomeUnknown { .. })), "{result:?}");
    assert_eq!(f.direct.get("key").await.unwrap().unwrap().value, "other");
}

/// A value that took effect and has aged since is not written again.
#[tokio::test]
async fn value_that_aged_before_it_was_found_is_not_rewritten() {
    let f = Proxied::new(1).await;
    let config =
        StoreConfig::new().max_age(Duration::from_millis(1000)).deadline(Duration::from_secs(10));
    let connection = connect(&f.server.url()).await.unwrap();
    let direct = connection.store_with_config("short", config.clone()).await.unwrap();
    let behind =
        connect(&f.proxy.url()).await.unwrap().store_with_config("short", config).await.unwrap();
    f.proxy.hold_answers(true);
    let create = behind.create("key", "value");
    let cut = async {
        eventually("the server has the write", async || direct.get("key").await.unwrap().is_some())
            .await;
        eventually("it has expired", async || direct.get("key").await.unwrap().is_none()).await;
        f.proxy.cut();
    };
    let (result, ()) = tokio::join!(create, cut);
    assert!(matches!(result, Err(KvError::OutcomeUnknown { .. })), "{result:?}");
    assert!(direct.get("key").await.unwrap().is_none());
}

#[tokio::test]
async fn lost_swap_overtaken_is_conflict_if_history_shows_it() {
    let f = Proxied::new(5).await;
    let first = f.behind.put("key", "one").await.unwrap();
    let others = async {
        f.direct.put("key", "other").await.unwrap();
    };
    let result = lose_request(&f, f.behind.update("key", "two", first), others).await;
    assert!(matches!(result, Err(KvError::RevisionMismatch { .. })), "{result:?}");
    assert_eq!(f.entries("key").await.len(), 2);
}

#[tokio::test]
async fn landed_swap_that_was_replaced_is_found_in_the_history() {
    let f = Proxied::new(5).await;
    let first = f.behind.put("key", "one").await.unwrap();
    let others = async {
        f.direct.put("key", "other").await.unwrap();
    };
    let update = f.behind.update("key", "two", first);
    let written = version(lose_acknowledgement(&f, "key", update, others).await);
    let entries = f.entries("key").await;
    assert_eq!(entries[1].0, written);
    assert_eq!(entries.len(), 3);
}

#[tokio::test]
async fn write_without_proof_has_unknown_outcome() {
    let f = Proxied::new(1).await;
    let first = f.behind.put("key", "one").await.unwrap();
    let replace = async || {
        f.direct.put("key", "other").await.unwrap();
    };
    // Nothing shows whether it landed before it was replaced.
    let landed =
        lose_acknowledgement(&f, "key", f.behind.update("key", "two", first), replace()).await;
    assert!(matches!(landed, Err(KvError::OutcomeUnknown { .. })), "{landed:?}");
    assert!(!landed.unwrap_err().is_retryable());
    let put = lose_request(&f, f.behind.put("key", "three"), replace()).await;
    assert!(matches!(put, Err(KvError::OutcomeUnknown { .. })), "{put:?}");
    assert_eq!(f.direct.get("key").await.unwrap().unwrap().value, "other");
}

#[tokio::test]
async fn write_to_absent_server_is_unknown_by_its_deadline() {
    let mut f = Proxied::new(1).await;
    let behind = f.behind.with_deadline(Duration::from_millis(600));
    f.proxy.hold_answers(true);
    let put = tokio::spawn(async move { behind.put("key", "value").await });
    eventually("the server has the write", async || f.direct.get("key").await.unwrap().is_some())
        .await;
    f.server.kill();
    f.proxy.refuse(true);
    f.proxy.cut();
    let result = tokio::time::timeout(Duration::from_secs(5), put).await.expect("no hang").unwrap();
    assert!(matches!(result, Err(KvError::OutcomeUnknown { .. })), "{result:?}");
}

#[tokio::test]
async fn write_while_disconnected_does_not_happen_later() {
    let f = Proxied::new(5).await;
    f.proxy.refuse(true);
    f.proxy.cut();
    let behind = f.behind.with_deadline(Duration::from_millis(300));
    // The client may take a moment to notice. The outcome of writes before that is unknown.
    eventually("writes are refused", async || {
        matches!(behind.put("noticed", "x").await, Err(KvError::Unavailable { .. }))
    })
    .await;
    let result = behind.put("key", "value").await;
    assert!(matches!(result, Err(KvError::Unavailable { .. })), "{result:?}");
    f.proxy.refuse(false);
    // After a later write has arrived, an earlier held-back one would have arrived too.
    f.behind.put("later", "x").await.unwrap();
    assert!(f.direct.get("key").await.unwrap().is_none());
}

#[tokio::test]
async fn put_many_over_a_cut_has_each_write_once_and_in_order() {
    let f = Proxied::new(5).await;
    let items: Vec<_> = (0..200).map(|n| (format!("key.{}", n / 2), n.to_string())).collect();
    f.proxy.hold_answers(true);
    let writes = f.behind.put_many(items.clone());
    let cut = async {
        eventually("the server has half of it", async || {
            f.direct.get("key.50").await.unwrap().is_some()
        })
        .await;
        f.proxy.cut();
    };
    let (answers, ()) = tokio::join!(writes, cut);
    let mut written = 0;
    for (pair, answers) in items.chunks(2).zip(answers.chunks(2)) {
        let key = &pair[0].0;
        let entries = f.direct.history(key.as_str()).unwrap().try_collect().await.unwrap();
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        let values: Vec<u32> =
            entries.iter().map(|entry| text(&entry.value).parse().unwrap()).collect();
        // Each took effect at most once, and the later after the earlier.
        assert!(values.is_sorted_by(|one, next| one < next), "{key}: {values:?}");
        assert!(values.len() <= 2, "{key}: {values:?}");
        for (item, answer) in pair.iter().zip(answers) {
            let there = entries.iter().find(|entry| entry.value == item.1.as_bytes());
            match answer {
                Ok(version) => {
                    assert_eq!(there.map(|entry| entry.version), Some(*version), "{key}")
                }
                Err(error) => {
                    assert!(matches!(error, KvError::OutcomeUnknown { .. }), "{key}: {error:?}")
                }
            }
            written += usize::from(answer.is_ok());
        }
    }
    // Writes that the server had before the cut are found.
    assert!(written >= 100, "{written}");
}
