//! A full disk under a running server.

use std::process::Command;
use std::time::Duration;

use shizuku_kv::{KvError, KvResult, Store, StoreConfig, VersionToken, WatchScope};
use shizuku_kv_tests::{NatsServer, eventually};

use super::{PATIENCE, SHORT, World, assert_rejected, within};

/// Makes the system reject each write of the server beyond this size of a file, or none.
fn limit_files(server: &NatsServer, bytes: &str) {
    let pid = server.pid().to_string();
    let done = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")])
        .output();
    let done = done.expect("this test needs `prlimit` of util-linux");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Writes until a write fails. Returns the number of accepted writes, and the error.
async fn write_until_error(store: &Store) -> (usize, KvError) {
    let mut number = 0;
    loop {
        match store.put(format!("key-{number:05}"), "v".repeat(1000)).await {
            Ok(_) => number += 1,
            Err(error) => return (number, error),
        }
        assert!(number < 5000, "no limit");
    }
}

/// Older servers answer the write with the system's error (2.10); newer ones do not answer (2.15).
#[track_caller]
fn assert_full(world: &World, written: KvResult<VersionToken>) {
    match written {
        Err(KvError::Unavailable { .. }) if !world.server.is_at_least(2, 15) => {
            assert_rejected(written, "Unavailable", true, &["file too large", "10077"]);
        }
        written => {
            assert_rejected(written, "OutcomeUnknown", false, &["not known", "read the key"])
        }
    }
}

/// The server reports it to no client. It logs a write error, and acknowledges no more writes of
/// this stream until it is restarted. Reads continue, and health does not show it.
#[tokio::test]
async fn full_disk_is_outcome_unknown_and_loses_nothing() {
    let config = StoreConfig::new().deadline(PATIENCE);
    let (mut world, patient) = World::with_store(NatsServer::builder(), config).await;
    limit_files(&world.server, "65536");
    // Newer servers end the count by not answering.
    let filled = patient.with_deadline(Duration::from_secs(3));
    let (accepted, error) = within("a write that fails", write_until_error(&filled)).await;
    assert!(accepted > 10, "{accepted}");
    assert_full(&world, Err(error));
    eventually("the server logs it", async || world.server.log().contains("file too large")).await;
    let store = patient.with_deadline(SHORT);
    assert_full(&world, store.put("later", "v".repeat(1000)).await);
    if world.server.is_at_least(2, 15) {
        // No write is too small, and deletions are writes.
        assert_full(&world, store.put("small", "x").await);
        assert_full(&world, store.delete("key-00000").await);
    }
    assert!(patient.get("key-00000").await.unwrap().is_some());
    world.connection.health().await.unwrap();

    // With room again.
    limit_files(&world.server, "unlimited");
    world.server.restart();
    eventually("the store is back", async || store.get("key-00000").await.is_ok()).await;
    for number in 0..accepted {
        assert!(
            patient.get(format!("key-{number:05}")).await.unwrap().is_some(),
            "{number} of {accepted}"
        );
    }
    patient.put("again", "x").await.unwrap();
    let entries = within("a scan", patient.scan(WatchScope::All).try_collect()).await.unwrap();
    assert!(
        (accepted + 1..=accepted + 4).contains(&entries.len()),
        "{} of {accepted}",
        entries.len()
    );
}
