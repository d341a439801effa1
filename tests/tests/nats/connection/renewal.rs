//! Credentials that expire and are renewed, and the log of an outage.

use std::fmt::{Debug, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nkeys::KeyPair;
use shizuku_kv::{Connection, KvError, NatsAuth, WatchScope, connect, nats_connect};
use shizuku_kv_tests::{NatsServer, eventually};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};

use super::authentication::Operator;
use super::{SHORT, caught_up, config, file, next_of, opened};

/// Log lines of the library on this thread, at INFO and above.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        // With a single dispatcher, the thread that reaches a callsite first decides whether it is
        // enabled. That may be the thread of another test, which has no subscriber.
        static OTHER: OnceLock<Dispatch> = OnceLock::new();
        OTHER.get_or_init(|| Dispatch::new(Self::default()));
        let log = Self::default();
        (log.clone(), tracing::subscriber::set_default(log))
    }

    /// Returns the lines that contain this text.
    fn lines(&self, text: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("shizuku_kv") && *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Replaces a file by a rename, like a program that renews credentials.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn seconds_from_now(seconds: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds
}

#[tokio::test]
async fn renewed_credentials_are_read_at_the_reconnect() {
    let (log, _guard) = Log::capture();
    let operator = Operator::new();
    let server = operator.server();
    let expiring = operator.expiring(seconds_from_now(6));
    let (_folder, path) = file("app.creds", &expiring.text);
    let auth = NatsAuth::CredentialsFile(path.clone());
    let connection = nats_connect(config(&server.url()).auth(auth).deadline(SHORT)).await.unwrap();
    let store = opened(&connection, "config").await;
    let first = store.put("key", "one").await.unwrap();
    let mut watch = caught_up(&store, WatchScope::All).await;
    // The file is damaged before the credentials expire, so that a reconnect can use neither.
    std::fs::write(&path, &expiring.text[..expiring.text.len() / 3]).unwrap();

    let mut errors = Vec::new();
    eventually("the credentials have ended", async || {
        connection.health().await.map_err(|error| errors.push(error)).is_err()
    })
    .await;
    // From now on no operation succeeds, and the link of the watch has the reason.
    let reading = tokio::spawn(async move {
        let update = next_of(&mut watch, "key").await;
        (update, watch)
    });
    let quick = store.with_deadline(Duration::from_millis(300));
    for _ in 0..6 {
        errors.push(connection.health().await.expect_err("healthy without credentials"));
        errors.push(quick.get("key").await.expect_err("reads without credentials"));
    }
    let last = connection.health().await.unwrap_err();
    assert!(matches!(last, KvError::Unauthorized { operation: "health", .. }), "{last:?}");
    // The error of half a file names the file.
    assert!(
        last.to_string().contains("app.creds") && last.to_string().contains("no JWT"),
        "{last}"
    );
    let operation = quick.get("key").await.unwrap_err();
    assert!(operation.is_retryable() && operation.to_string().contains("app.creds"), "{operation}");
    // Restores the whole file, whose credentials have expired.
    replace(&path, &expiring.text);
    eventually("the server rejects the old credentials", async || {
        let error = connection.health().await.unwrap_err();
        let is_told = error.to_string().contains("rejects the credentials");
        errors.push(error);
        is_told
    })
    .await;
    assert_eq!(log.lines("connected to NATS").len(), 1, "{:?}", log.0);
    assert_eq!(log.lines("disconnected from NATS").len(), 1, "{:?}", log.0);

    let renewed = operator.expiring(seconds_from_now(3600));
    replace(&path, &renewed.text);
    eventually("the renewed credentials count", async || connection.health().await.is_ok()).await;
    let second = store.update("key", "two", first).await.unwrap();
    let (update, watch) = reading.await.unwrap();
    assert_eq!(update.entry().unwrap().version, second);
    assert!(watch.link().is_up());
    assert_eq!(log.lines("reconnected to NATS").len(), 1, "{:?}", log.0);
    let shown = format!("{errors:?} {:?}", log.0);
    for secret in [&expiring.seed, &expiring.jwt, &renewed.seed, &renewed.jwt] {
        assert!(!shown.contains(secret.as_str()), "{shown}");
    }
}

/// In the second in which they expire, the server answers the first ping, and then closes the
/// connection.
#[tokio::test]
async fn credentials_expiring_at_once_are_rejected_at_connect() {
    let operator = Operator::new();
    let server = operator.server();
    for _ in 0..10 {
        let credentials = operator.expiring(seconds_from_now(0));
        let auth = NatsAuth::Credentials(credentials.text);
        let error = nats_connect(config(&server.url()).auth(auth)).await.unwrap_err();
        assert!(matches!(error, KvError::Unauthorized { operation: "connect", .. }), "{error:?}");
    }
}

#[tokio::test]
async fn renewed_nkey_is_read_at_the_reconnect() {
    let (old, new) = (KeyPair::new_user(), KeyPair::new_user());
    let users = |key: &KeyPair| {
        format!("authorization {{ users: [ {{ nkey: {} }} ] }}\n", key.public_key())
    };
    let (_folder, included) = file("users.conf", users(&old));
    // The server resolves the path of an included file relative to its own file.
    let relative = format!("../../../../../../..{}", included.display());
    let mut server = NatsServer::builder().config(&format!("include \"{relative}\"")).start();
    let (_folder, path) = file("app.nk", old.seed().unwrap());
    let url = format!("{}?nkey={}&deadline_ms={}", server.url(), path.display(), SHORT.as_millis());
    let connection = connect(&url).await.unwrap();
    eventually("the key is accepted", async || connection.health().await.is_ok()).await;
    std::fs::write(&included, users(&new)).unwrap();
    server.restart();
    eventually("the old key is rejected", async || {
        matches!(connection.health().await, Err(KvError::Unauthorized { .. }))
    })
    .await;
    std::fs::write(&path, "SU").unwrap();
    eventually("half of a key is named", async || {
        connection.health().await.unwrap_err().to_string().contains("app.nk")
    })
    .await;
    replace(&path, &new.seed().unwrap());
    eventually("the renewed key counts", async || connection.health().await.is_ok()).await;
}

#[tokio::test]
async fn outage_is_logged_once_with_address_and_reason() {
    let (log, _guard) = Log::capture();
    let mut server = NatsServer::builder().user("app", "hunter2").start();
    let connection =
        connect(&format!("{}?deadline_ms=300", server.url_as("app:hunter2"))).await.unwrap();
    assert_eq!(log.lines("connected to NATS").len(), 1, "{:?}", log.0);
    for round in 1..=2 {
        server.kill();
        let mut failures = 0;
        eventually("the server has been missed for some attempts", async || {
            failures += usize::from(connection.health().await.is_err());
            failures >= 6 && log.lines("cannot reconnect to NATS").len() >= round
        })
        .await;
        let lost = log.lines("disconnected from NATS");
        assert_eq!(lost.len(), round, "{:?}", log.0);
        let attempts = log.lines("cannot reconnect to NATS");
        assert_eq!(attempts.len(), round, "{:?}", log.0);
        let line = attempts.last().unwrap();
        assert!(line.contains(&format!("127.0.0.1:{}", server.port())), "{line}");
        assert!(line.to_ascii_lowercase().contains("refused"), "{line}");
        let error = connection.health().await.unwrap_err();
        assert!(error.to_string().to_ascii_lowercase().contains("refused"), "{error}");
        server.restart();
        // The answer can come before the event that is logged.
        eventually("the server is back", async || {
            connection.health().await.is_ok() && log.lines("reconnected to NATS").len() >= round
        })
        .await;
        assert_eq!(log.lines("reconnected to NATS").len(), round, "{:?}", log.0);
    }
    assert!(!format!("{:?}", log.0).contains("hunter2"), "{:?}", log.0);
}
