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

use shizuku_kv::{KvError, KvOperation, KvResult, Store, StoreConfig, VersionToken, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually};

/// One client behind the proxy, and one around it that sees the actual content.
struct Fixture {
    server: NatsServer,
    proxy: TcpProxy,
    behind: Store,
    around: Store,
}

async fn fixture(history: u8) -> Fixture {
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let config = StoreConfig::new().history(history).deadline(Duration::from_secs(10));
    let around = connect(&server.url()).await.unwrap();
    let around = around.store_with_config("b", config.clone()).await.unwrap();
    let behind = connect(&proxy.url()).await.unwrap();
    let behind = behind.store_with_config("b", config).await.unwrap();
    Fixture { server, proxy, behind, around }
}

impl Fixture {
    async fn entries(&self, key: &str) -> Vec<(u64, KvOperation)> {
        let entries = self.around.history(key).unwrap().try_collect().await.unwrap();
        entries.iter().map(|entry| (entry.version.as_u64().unwrap(), entry.operation)).collect()
    }

    /// Runs a write whose acknowledgement is lost: the server accepts it, then the connection is
    /// cut. `meanwhile` runs between the two.
    async fn lose_acknowledgement(
        &self,
        key: &str,
        write: impl Future<Output = KvResult<VersionToken>>,
        meanwhile: impl Future<Output = ()>,
    ) -> KvResult<VersionToken> {
        let before = self.around.entry(key).await.unwrap().map(|entry| entry.version);
        self.proxy.hold_answers(true);
        let cut = async {
            eventually("the server has the write", async || {
                self.around.entry(key).await.unwrap().map(|entry| entry.version) != before
            })
            .await;
            meanwhile.await;
            self.proxy.cut();
        };
        tokio::join!(write, cut).0
    }

    /// Runs a write whose request is lost: the proxy holds it back, then the connection is cut.
    async fn lose_request(
        &self,
        write: impl Future<Output = KvResult<VersionToken>>,
        meanwhile: impl Future<Output = ()>,
    ) -> KvResult<VersionToken> {
        self.proxy.hold_requests(true);
        let cut = async {
            // The write is in transit once its future has run as far as it can. All of its steps
            // that need no answer happen within the first of these turns.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            meanwhile.await;
            self.proxy.cut();
        };
        tokio::join!(write, cut).0
    }
}

fn version(result: KvResult<VersionToken>) -> u64 {
    result.unwrap().as_u64().unwrap()
}

#[tokio::test]
async fn a_put_that_landed_is_found_by_its_id() {
    let f = fixture(5).await;
    let put = f.behind.put("key", "value");
    let written = version(f.lose_acknowledgement("key", put, async {}).await);
    assert_eq!(f.entries("key").await, [(written, KvOperation::Put)]);
}

#[tokio::test]
async fn a_create_that_landed_is_no_conflict_with_itself() {
    let f = fixture(5).await;
    let create = f.behind.create("key", "value");
    let written = version(f.lose_acknowledgement("key", create, async {}).await);
    assert_eq!(f.entries("key").await, [(written, KvOperation::Put)]);
}

#[tokio::test]
async fn a_swap_that_landed_is_no_conflict_with_itself() {
    for history in [1, 5] {
        let f = fixture(history).await;
        let first = f.behind.put("key", "one").await.unwrap();
        let update = f.behind.update("key", "two", first);
        let written = version(f.lose_acknowledgement("key", update, async {}).await);
        assert_eq!(f.entries("key").await.last(), Some(&(written, KvOperation::Put)));
        assert_eq!(f.entries("key").await.len(), usize::from(history.min(2)));
    }
}

#[tokio::test]
async fn deletions_that_landed_are_found_too() {
    let f = fixture(5).await;
    let first = f.behind.put("a", "one").await.unwrap();
    f.behind.put("b", "one").await.unwrap();
    let delete = f.behind.delete_with_version("a", first);
    let written = version(f.lose_acknowledgement("a", delete, async {}).await);
    assert_eq!(f.entries("a").await.last(), Some(&(written, KvOperation::Delete)));
    let purge = f.behind.purge("b");
    let written = version(f.lose_acknowledgement("b", purge, async {}).await);
    assert_eq!(f.entries("b").await, [(written, KvOperation::Purge)]);
}

#[tokio::test]
async fn a_swap_that_was_lost_on_its_way_is_repeated_once() {
    let f = fixture(5).await;
    let written = version(f.lose_request(f.behind.create("create", "value"), async {}).await);
    assert_eq!(f.entries("create").await, [(written, KvOperation::Put)]);
    let first = f.behind.put("update", "one").await.unwrap();
    let written = version(f.lose_request(f.behind.update("update", "two", first), async {}).await);
    assert_eq!(f.entries("update").await.len(), 2);
    assert_eq!(f.entries("update").await.last(), Some(&(written, KvOperation::Put)));
    let delete = f
        .behind
        .delete_with_version("create", f.around.get("create").await.unwrap().unwrap().version);
    let written = version(f.lose_request(delete, async {}).await);
    assert_eq!(f.entries("create").await.last(), Some(&(written, KvOperation::Delete)));
}

/// Its first copy may still be in transit, and a second could undo a write of another client.
#[tokio::test]
async fn a_write_without_expectation_is_never_repeated() {
    let f = fixture(5).await;
    let put = f.lose_request(f.behind.put("put", "value"), async {}).await;
    assert!(matches!(put, Err(KvError::OutcomeUnknown { .. })), "{put:?}");
    let delete = f.lose_request(f.behind.delete("delete"), async {}).await;
    assert!(matches!(delete, Err(KvError::OutcomeUnknown { .. })), "{delete:?}");
    // After a later write has arrived, a repeated copy would have arrived too.
    f.behind.put("later", "x").await.unwrap();
    assert_eq!(f.entries("put").await, []);
    assert_eq!(f.entries("delete").await, []);
}

/// The bucket is not the one whose sequences the client has seen.
#[tokio::test]
async fn recreated_bucket_does_not_prove_a_lost_write() {
    let f = fixture(1).await;
    for _ in 0..50 {
        f.behind.put("other", "x").await.unwrap();
    }
    let direct = connect(&f.server.url()).await.unwrap();
    direct.delete_store("b").await.unwrap();
    direct.store("b").await.unwrap();
    let first = f.behind.put("key", "one").await.unwrap();
    let replace = async {
        f.around.put("key", "other").await.unwrap();
    };
    let update = f.behind.update("key", "two", first);
    let result = f.lose_acknowledgement("key", update, replace).await;
    assert!(matches!(result, Err(KvError::OutcomeUnknown { .. })), "{result:?}");
    assert_eq!(f.around.get("key").await.unwrap().unwrap().value, "other");
}

/// A value that took effect and has aged since is not written again.
#[tokio::test]
async fn a_value_that_aged_before_it_was_found_is_not_written_again() {
    let f = fixture(1).await;
    let config =
        StoreConfig::new().max_age(Duration::from_millis(1000)).deadline(Duration::from_secs(10));
    let direct = connect(&f.server.url()).await.unwrap();
    let around = direct.store_with_config("short", config.clone()).await.unwrap();
    let behind =
        connect(&f.proxy.url()).await.unwrap().store_with_config("short", config).await.unwrap();
    f.proxy.hold_answers(true);
    let create = behind.create("key", "value");
    let cut = async {
        eventually("the server has the write", async || around.get("key").await.unwrap().is_some())
            .await;
        eventually("it has expired", async || around.get("key").await.unwrap().is_none()).await;
        f.proxy.cut();
    };
    let (result, ()) = tokio::join!(create, cut);
    assert!(matches!(result, Err(KvError::OutcomeUnknown { .. })), "{result:?}");
    assert!(around.get("key").await.unwrap().is_none());
}

#[tokio::test]
async fn lost_swap_overtaken_is_conflict_if_history_shows_it() {
    let f = fixture(5).await;
    let first = f.behind.put("key", "one").await.unwrap();
    let others = async {
        f.around.put("key", "other").await.unwrap();
    };
    let result = f.lose_request(f.behind.update("key", "two", first), others).await;
    assert!(matches!(result, Err(KvError::RevisionMismatch { .. })), "{result:?}");
    assert_eq!(f.entries("key").await.len(), 2);
}

#[tokio::test]
async fn a_swap_that_landed_and_was_replaced_is_found_in_the_history() {
    let f = fixture(5).await;
    let first = f.behind.put("key", "one").await.unwrap();
    let others = async {
        f.around.put("key", "other").await.unwrap();
    };
    let update = f.behind.update("key", "two", first);
    let written = version(f.lose_acknowledgement("key", update, others).await);
    let entries = f.entries("key").await;
    assert_eq!(entries[1].0, written);
    assert_eq!(entries.len(), 3);
}

#[tokio::test]
async fn write_without_proof_has_unknown_outcome() {
    let f = fixture(1).await;
    let first = f.behind.put("key", "one").await.unwrap();
    let replace = async || {
        f.around.put("key", "other").await.unwrap();
    };
    // Nothing shows whether it landed before it was replaced.
    let landed =
        f.lose_acknowledgement("key", f.behind.update("key", "two", first), replace()).await;
    assert!(matches!(landed, Err(KvError::OutcomeUnknown { .. })), "{landed:?}");
    assert!(!landed.unwrap_err().is_retryable());
    let put = f.lose_request(f.behind.put("key", "three"), replace()).await;
    assert!(matches!(put, Err(KvError::OutcomeUnknown { .. })), "{put:?}");
    assert_eq!(f.around.get("key").await.unwrap().unwrap().value, "other");
}

#[tokio::test]
async fn write_to_absent_server_is_unknown_by_its_deadline() {
    let mut f = fixture(1).await;
    let behind = f.behind.with_deadline(Duration::from_millis(600));
    f.proxy.hold_answers(true);
    let put = tokio::spawn(async move { behind.put("key", "value").await });
    eventually("the server has the write", async || f.around.get("key").await.unwrap().is_some())
        .await;
    f.server.kill();
    f.proxy.refuse(true);
    f.proxy.cut();
    let result = tokio::time::timeout(Duration::from_secs(5), put).await.expect("no hang").unwrap();
    assert!(matches!(result, Err(KvError::OutcomeUnknown { .. })), "{result:?}");
}

#[tokio::test]
async fn a_write_while_disconnected_does_not_happen_later() {
    let f = fixture(5).await;
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
    assert!(f.around.get("key").await.unwrap().is_none());
}

#[tokio::test]
async fn a_pipeline_of_writes_over_a_cut_has_each_once_and_in_order() {
    let f = fixture(5).await;
    let items: Vec<_> = (0..200).map(|n| (format!("key.{}", n / 2), n.to_string())).collect();
    f.proxy.hold_answers(true);
    let writes = f.behind.put_many(items.clone());
    let cut = async {
        eventually("the server has half of it", async || {
            f.around.get("key.50").await.unwrap().is_some()
        })
        .await;
        f.proxy.cut();
    };
    let (answers, ()) = tokio::join!(writes, cut);
    let mut written = 0;
    for (pair, answers) in items.chunks(2).zip(answers.chunks(2)) {
        let key = &pair[0].0;
        let entries = f.around.history(key.as_str()).unwrap().try_collect().await.unwrap();
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
