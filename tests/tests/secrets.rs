//! No secret is shown: not by `Debug`, not by an error or its sources, not in a log line.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

use std::error::Error;
use std::fmt::{Debug, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nkeys::KeyPair;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use shizuku_kv::{
    Connection, JsonByteDes, JsonByteSer, KeyValue, KeyValueRead, KeyValueWrite, KvError, KvUpdate,
    LiveRead, Modify, NatsAuth, NatsConnectionConfig, NatsTls, StaticKeyIndexedValue, Store,
    StoreConfig, TypedUpdate, WatchScope, connect, nats_connect,
};
use shizuku_kv_tests::{NatsServer, TcpSilence, eventually, unique};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Part of every password, token and value here.
const SECRET: &str = "hunter2";

const SHORT: Duration = Duration::from_millis(500);

/// All log lines of the library in this process, from any thread, at every level.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<String>,
    spans: AtomicU64,
}

/// The subscriber that fills the log.
struct Capture(&'static Log);

/// Formats fields as a log line has them.
struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let _ = write!(self.0, " {field}={}", shown(value));
    }
}

impl Capture {
    fn line(&self, metadata: &Metadata<'_>, fields: impl FnOnce(&mut Fields<'_>)) {
        let mut lines = self.0.lines.lock().unwrap();
        let _ = write!(lines, "{} {}:", metadata.level(), metadata.target());
        fields(&mut Fields(&mut lines));
        lines.push('\n');
    }
}

impl Subscriber for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("shizuku_kv")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.line(span.metadata(), |fields| span.record(fields));
        Id::from_u64(self.0.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _span: &Id, values: &Record<'_>) {
        values.record(&mut Fields(&mut self.0.lines.lock().unwrap()));
    }

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.line(event.metadata(), |fields| event.record(fields));
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

impl Log {
    /// Returns the log of this process. Log lines are captured from the first call on.
    fn captured() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        static INSTALLED: OnceLock<()> = OnceLock::new();
        let log = LOG.get_or_init(Log::default);
        INSTALLED.get_or_init(|| tracing::subscriber::set_global_default(Capture(log)).unwrap());
        log
    }

    fn has(&self, text: &str) -> bool {
        self.lines.lock().unwrap().contains(text)
    }

    #[track_caller]
    fn assert_hides(&self, secrets: &[&str]) {
        assert_hides(&self.lines.lock().unwrap(), secrets);
    }
}

/// Returns an error as a program could print it, with all of its sources.
fn shown(error: &(dyn Error + 'static)) -> String {
    let mut shown = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let _ = writeln!(shown, "{error}\n{error:#}\n{error:?}\n{error:#?}");
        next = error.source();
    }
    shown
}

fn debugged(value: &dyn Debug) -> String {
    format!("{value:?}\n{value:#?}")
}

#[track_caller]
fn assert_hides(text: &str, secrets: &[&str]) {
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        assert!(!text.contains(secret), "{secret:?} is shown: {text}");
    }
}

/// The secret parts of credentials: the seed and the signature of the JWT.
struct Credentials {
    seed: String,
    jwt: String,
    text: String,
}

fn credentials() -> Credentials {
    let seed = KeyPair::new_user().seed().unwrap();
    let jwt = format!("eyJ0eXAiOiJKV1QifQ.{}.c2lnbmF0dXJl", STANDARD.encode(SECRET));
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    Credentials { seed, jwt, text }
}

/// Returns a port on which nothing listens.
fn closed_port() -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Returns every kind of credentials, with the secrets that it must not show.
fn secretive(url: &str) -> Vec<(NatsConnectionConfig, Vec<String>)> {
    let (scheme, host) = url.split_once("://").unwrap();
    let with = |userinfo: &str| {
        NatsConnectionConfig::from_url(&format!("{scheme}://{userinfo}@{host}")).unwrap()
    };
    let base = || NatsConnectionConfig::from_url(url).unwrap();
    let Credentials { seed, jwt, text } = credentials();
    let encoded = STANDARD.encode(&text);
    let secrets = [SECRET, &seed, &seed[10..30], &jwt, "c2lnbmF0dXJl", &encoded[40..80]];
    let user =
        |user: &str| NatsAuth::UserPassword { user: user.to_owned(), password: SECRET.to_owned() };
    [
        with("app:hunter2"),
        with("app:p%40ss%3Ahunter2%2F"),
        with("app:%68unter2"),
        with(":hunter2"),
        with("hunter2"),
        with("tok-hunter2-en"),
        base().auth(user("app")),
        base().auth(user("")),
        base().auth(NatsAuth::Token(SECRET.to_owned())),
        base().auth(NatsAuth::NKey(seed.clone())),
        base().auth(NatsAuth::Credentials(text.clone())),
        base().auth(NatsAuth::credentials_base64(&encoded).unwrap()),
    ]
    .into_iter()
    .map(|config| (config, secrets.iter().map(|&secret| secret.to_owned()).collect()))
    .collect()
}

fn refs(secrets: &[String]) -> Vec<&str> {
    secrets.iter().map(String::as_str).collect()
}

#[test]
fn a_configuration_shows_where_and_how_but_no_secret() {
    for (config, secrets) in secretive("tls://one:4222,two:4223?name=billing&tls_ca=/etc/ca.pem") {
        let text = debugged(&config);
        assert_hides(&text, &refs(&secrets));
        assert_hides(&debugged(&config.auth), &refs(&secrets));
        for part in ["tls://one:4222", "tls://two:4223", "billing", "/etc/ca.pem"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
    // Errors name files, which are not secret.
    for option in ["creds", "nkey"] {
        let config =
            NatsConnectionConfig::from_url(&format!("nats://host?{option}=/run/app.key")).unwrap();
        assert!(debugged(&config).contains("/run/app.key"));
    }
    // Misplaced userinfo is not shown either.
    for server in [
        "nats://app:hunter2@host",
        "app:hunter2@host:4222",
        "hunter2@host",
        "nats://app:x@hunter2@host",
    ] {
        let config = NatsConnectionConfig::new([server]);
        assert_hides(&debugged(&config), &[SECRET]);
        assert!(debugged(&config).contains("host"));
    }
}

/// A password that is not percent-encoded can break a URL in many ways. No part of the result may
/// be the plain password.
#[test]
fn a_password_that_takes_the_url_apart_is_not_shown() {
    const ODD: [&str; 15] =
        ["", "@", ":", "/", "?", "#", ",", "[", "]", "%", "&", "=", "://", "@h?", "@h:1,"];
    let mut leaks = Vec::new();
    for before in ODD {
        for after in ODD {
            for last in ["", "@", ",x"] {
                let url = format!("nats://app:{before}{SECRET}{after}{last}@host:4222");
                let text = match NatsConnectionConfig::from_url(&url) {
                    Ok(config) => debugged(&config),
                    Err(error) => shown(&error),
                };
                if text.contains(SECRET) {
                    leaks.push(format!("{url} => {}", text.lines().next().unwrap_or_default()));
                }
            }
        }
    }
    assert!(leaks.is_empty(), "{} of them:\n{}", leaks.len(), leaks.join("\n"));
}

#[tokio::test]
async fn an_error_about_a_url_does_not_show_its_userinfo() {
    let log = Log::captured();
    for url in [
        "http://app:hunter2@host",
        "redis://:hunter2@host:6379/0",
        "postgres://app:hunter2@host/db",
        "amqp://hunter2@host",
        "nats:app:hunter2@host",
        "nats:/app:hunter2@host",
        "tls:hunter2@host",
        "app:hunter2@host",
        "hunter2@host",
        "//app:hunter2@host",
        "://app:hunter2@host",
        "memory:hunter2",
        "memory://app:hunter2@host",
        "file://app:hunter2@host",
        "file://app:hunter2@host/data",
        "nats://app:hunter2@",
        "nats://app:hunter2@:4222",
        "nats://app:hunter2@host:port",
        "nats://app:hunter2@host:99999",
        "nats://app:hunter2@a host",
        "nats://app:hunter2@[::1",
        "nats://app:hunter2@host/path",
        "nats://app:hunter2@host/path@there",
        "nats://app:hunter2@one,other:hunter2@two",
        "nats://app:hunter2@one,hunter2@two",
        "nats://app:hunter2@host?nonsense=hunter2",
        "nats://app:hunter2@host?name",
        "nats://app:hunter2@host?deadline_ms=hunter2",
        "nats://app:hunter2@host?creds=/run/hunter2",
        "nats://hunter2@host?tls_cert=x",
        "nats://app:hunter2%ff@host",
        "nats://app:hunter2?@host",
        "nats://app:hunter2,@host",
        "nats://app:hunter2/@host:x",
    ] {
        let error = connect(url).await.unwrap_err();
        assert_hides(&shown(&error), &[SECRET]);
    }
    // Credentials in the wrong place are rejected and not shown.
    for server in ["nats://app:hunter2@host", "hunter2@host", "app:hunter2@host:4222"] {
        let error = nats_connect(NatsConnectionConfig::new([server])).await.unwrap_err();
        assert!(matches!(error, KvError::InvalidConfig { field: "servers", .. }), "{error:?}");
        assert_hides(&shown(&error), &[SECRET]);
    }
    log.assert_hides(&[SECRET]);
}

#[tokio::test]
async fn an_error_from_connecting_does_not_show_who_wanted_to() {
    let log = Log::captured();
    let server = NatsServer::builder().user("somebody", "else").start();
    let silence = TcpSilence::start();
    for url in [
        // Rejected, no server, unknown host, no answer, no TLS.
        server.url(),
        format!("nats://127.0.0.1:{}", closed_port()),
        "nats://no-such-host.invalid".to_owned(),
        silence.url(),
        format!("tls://127.0.0.1:{}", server.port()),
    ] {
        let tries = secretive(&url).into_iter().map(async |(config, secrets)| {
            let error = nats_connect(config.connect_timeout(SHORT)).await.unwrap_err();
            assert_hides(&shown(&error), &refs(&secrets));
            Log::captured().assert_hides(&refs(&secrets));
        });
        futures_util::future::join_all(tries).await;
    }
    for (url, kinds) in [
        (server.url_as("app:hunter2"), ["Unauthorized", "Unauthorized"]),
        (format!("nats://app:hunter2@127.0.0.1:{}", closed_port()), ["Unavailable", "Unavailable"]),
        (
            format!("nats://app:hunter2@127.0.0.1:{}?connect_timeout_ms=100", silence.port()),
            ["Timeout", "Unavailable"],
        ),
    ] {
        let error = connect(&url).await.unwrap_err();
        assert!(kinds.iter().any(|kind| debugged(&error).starts_with(kind)), "{error:?}");
        assert_hides(&shown(&error), &[SECRET]);
    }
    // Files with other content.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd");
    for content in [SECRET.to_owned(), credentials().text.replace("BEGIN", SECRET)] {
        std::fs::write(&path, &content).unwrap();
        for auth in [
            NatsAuth::NKeyFile(path.clone()),
            NatsAuth::CredentialsFile(path.clone()),
            NatsAuth::NKey(content.clone()),
            NatsAuth::Credentials(content.clone()),
        ] {
            let config = NatsConnectionConfig::new([server.url()]).auth(auth);
            let error = nats_connect(config.connect_timeout(SHORT)).await.unwrap_err();
            assert_hides(&shown(&error), &[SECRET]);
        }
        let tls = NatsTls::new().root_certificates(&path).client_certificate(&path, &path);
        let config =
            NatsConnectionConfig::new([format!("tls://127.0.0.1:{}", server.port())]).tls(tls);
        let error = nats_connect(config.connect_timeout(SHORT)).await.unwrap_err();
        assert_hides(&shown(&error), &[SECRET]);
    }
    log.assert_hides(&[SECRET]);
}

/// Its own `Debug` shows the secret. Types that wrap it must not show it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
#[kv(key = "config.database")]
struct Database {
    password: String,
    connections: u32,
}

impl Database {
    fn secret() -> Self {
        Self { password: SECRET.to_owned(), connections: 1 }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, KeyValue)]
#[kv(key = "login.{id}", codec = json)]
struct Login {
    id: u64,
    password: String,
}

/// Formats all types that hold a record, in every form.
#[tokio::test]
async fn types_that_hold_a_record_hide_it() {
    let log = Log::captured();
    let config = StoreConfig::new().history(5);
    let store = connect("memory:").await.unwrap().store_with_config("held", config).await.unwrap();
    let login = Login { id: 7, password: SECRET.to_owned() };
    login.write_to_anyway(&store).await.unwrap();
    let map = Login::live_map(&store).await.unwrap();
    let changes = map.changes();
    let live = Login::live_at(&store, 7).await.unwrap();
    let optional = Login::live_at_optional(&store, 7).await.unwrap();
    let watch = Login::watch_all(&store).await.unwrap();
    login.write_to_anyway(&store).await.unwrap();
    let update = watch.next().await.unwrap().unwrap();
    let change = changes.next().await.unwrap();
    let entry = Login::atomic_read_from(&store, 7).await.unwrap().unwrap();
    let modified = Login::modify(&store, 7, Modify::from).await.unwrap().unwrap();
    let said = [
        debugged(&(&entry, &modified, Some(&entry), vec![entry.clone()])),
        debugged(&(&update, &change, &watch, &changes)),
        debugged(&(live.load(), live.snapshot(), &live, live.status(), live.stream())),
        debugged(&(optional.load(), optional.snapshot(), &optional)),
        debugged(&(&map, map.snapshot(), map.get(&LoginKey { id: 7 }), map.status())),
        debugged(&Login::list(&store).try_collect().await.unwrap()),
        debugged(&Login::history_read_from(&store, 7).await.unwrap()),
        debugged(&[Modify::Write(login.clone()), Modify::Keep, Modify::Delete]),
        debugged(&TypedUpdate::Put(entry)),
    ];
    for text in said {
        assert_hides(&text, &[SECRET]);
    }
    log.assert_hides(&[SECRET]);
}

/// A type whose own messages imitate serde's, with its secret reversed.
#[derive(Debug, Serialize, JsonByteSer, JsonByteDes)]
struct Imitator(String);

impl<'de> Deserialize<'de> for Imitator {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (form, secret) = text.split_once('|').unwrap_or_default();
        let reversed: String = secret.chars().rev().collect();
        Err(D::Error::custom(form.replace('?', &reversed)))
    }
}

impl StaticKeyIndexedValue for Imitator {
    fn key() -> String {
        "imitator".to_owned()
    }
}

/// A field that serde reads without naming it first, because of `flatten`.
#[derive(Debug, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
struct Flat {
    #[serde(flatten)]
    endpoint: Endpoint,
}

impl StaticKeyIndexedValue for Flat {
    fn key() -> String {
        "flat".to_owned()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Endpoint {
    host: String,
    port: u16,
}

/// Errors of a type's own code, and of serde's code for the type.
async fn own_messages_are_hidden(store: &Store) {
    const REVERSED: &str = "2retnuh";
    for form in [
        "missing field `?`",
        "duplicate field `?`",
        "unknown field `x`, expected `?`",
        "unknown variant `x`, expected one of `?`, `b`",
        "invalid type: string, expected ?",
        "invalid length 1, expected ?",
    ] {
        store.put("imitator", format!("\"{form}|{SECRET}\"")).await.unwrap();
        assert_hides(&shown(&Imitator::read(store).await.unwrap_err()), &[SECRET, REVERSED]);
    }
    store.put("flat", format!("{{\"host\": \"{SECRET}\"}}")).await.unwrap();
    let text = shown(&Flat::read(store).await.unwrap_err());
    assert!(text.contains("missing field `port`"), "{text}");
    assert_hides(&text, &[SECRET]);
}

/// Uses everything that a store returns and rejects, with secrets only in the values.
async fn uses_a_store(connection: &dyn Connection, log: &Log) -> Store {
    let name = unique("secrets");
    let settings = StoreConfig::new().history(3).max_value_size(1000);
    let store = connection.store_with_config(&name, settings).await.unwrap();
    let mut said = Vec::<String>::new();
    let watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), KvUpdate::CaughtUp);
    let typed_watch = Database::watch_value(&store).await.unwrap();
    assert!(matches!(typed_watch.next().await, Some(Ok(TypedUpdate::CaughtUp))));

    let version = Database::secret().create_write(&store).await.unwrap();
    said.push(debugged(&store.get(Database::key()).await.unwrap()));
    said.push(debugged(&store.entry(Database::key()).await.unwrap()));
    said.push(debugged(&store.get_many([Database::key()]).await.unwrap()));
    said.push(debugged(&store.history(Database::key()).unwrap().try_collect().await.unwrap()));
    said.push(debugged(&store.scan(WatchScope::All).try_collect().await.unwrap()));
    said.push(debugged(&watch.next().await.unwrap().unwrap()));
    said.push(debugged(&Database::atomic_read(&store).await.unwrap()));
    said.push(debugged(&typed_watch.next().await.unwrap().unwrap()));
    said.push(debugged(&(
        connection,
        &store,
        store.backend(),
        &watch,
        &typed_watch,
        watch.cursor(),
        version,
    )));
    said.push(debugged(&(
        store.scan(WatchScope::All),
        Database::list(&store),
        store.history("a").unwrap(),
    )));

    // A lost swap, a lost create, and a value that is too large.
    let stale = store.put(Database::key(), SECRET).await.unwrap();
    said.push(shown(&store.update(Database::key(), SECRET, version).await.unwrap_err()));
    said.push(shown(&store.create(Database::key(), SECRET).await.unwrap_err()));
    said.push(shown(&store.put("large", SECRET.repeat(200)).await.unwrap_err()));
    let changed = Database { password: SECRET.to_owned(), connections: 2 };
    said.push(shown(&changed.write_to_atomically(&store, version).await.unwrap_err()));
    said.push(shown(&changed.create_write(&store).await.unwrap_err()));

    // A value that does not decode, in every operation that reads it.
    assert_eq!(store.get(Database::key()).await.unwrap().unwrap().version, stale);
    for bad in [
        SECRET.to_owned(),
        format!("\"{SECRET}\""),
        format!("{{\"password\":\"{SECRET}\",\"connections\":\"{SECRET}\"}}"),
        format!("{{\"password\":\"{SECRET}\",\"{SECRET}\":1}}"),
        format!("{{\"password\":\"{SECRET}"),
    ] {
        store.put(Database::key(), bad).await.unwrap();
        said.push(shown(&Database::read(&store).await.unwrap_err()));
        said.push(shown(&Database::atomic_read(&store).await.unwrap_err()));
        said.push(debugged(&Database::read_many(&store, [Database::key()]).await.unwrap()));
        said.push(debugged(&Database::history_read_from(&store, Database::key()).await.unwrap()));
        said.push(shown(&Database::list(&store).next().await.unwrap().unwrap_err()));
        said.push(shown(
            &Database::watch_value(&store).await.unwrap().next().await.unwrap().unwrap_err(),
        ));
        said.push(shown(&Database::modify_value(&store, |_| None).await.unwrap_err()));
    }
    own_messages_are_hidden(&store).await;
    store.delete(Database::key()).await.unwrap();
    said.push(shown(&store.update(Database::key(), SECRET, stale).await.unwrap_err()));
    let other =
        connection.store_with_config(&name, StoreConfig::new().history(5)).await.unwrap_err();
    said.push(shown(&other));
    for text in said {
        assert!(!text.trim().is_empty());
        assert_hides(&text, &[SECRET]);
    }
    log.assert_hides(&[SECRET]);
    store
}

#[tokio::test]
async fn nothing_of_a_store_in_memory_shows_a_value() {
    let log = Log::captured();
    let connection = connect("memory:").await.unwrap();
    let store = uses_a_store(&*connection, log).await;
    connection.shutdown().await.unwrap();
    assert_hides(&shown(&store.put("key", SECRET).await.unwrap_err()), &[SECRET]);
    log.assert_hides(&[SECRET]);
}

#[tokio::test]
async fn nothing_of_a_store_on_nats_shows_a_value_or_who_is_connected() {
    let log = Log::captured();
    let mut server = NatsServer::builder().user("app", SECRET).start();
    let connection = connect(&server.url_as("app:hunter2")).await.unwrap();
    assert!(log.has("connected"), "the log is captured");
    assert!(debugged(&connection).contains(&server.port().to_string()));
    assert_hides(&debugged(&connection), &[SECRET]);
    let store = uses_a_store(&*connection, log).await;

    // Errors are logged, but not the values that they concern.
    let brief = store.with_deadline(SHORT);
    let watch = brief.watch(WatchScope::All).await.unwrap();
    server.pause();
    let (put, many) = tokio::join!(brief.put("key", SECRET), brief.put_many([("a", SECRET)]));
    assert_hides(&shown(&put.unwrap_err()), &[SECRET]);
    assert_hides(&debugged(&many), &[SECRET]);
    server.resume();
    server.kill();
    eventually("the server is missed", async || {
        brief.with_deadline(Duration::from_millis(50)).get("key").await.is_err()
    })
    .await;
    let (put, _) = tokio::join!(
        brief.put("key", SECRET),
        tokio::time::timeout(SHORT, async {
            while watch.next().await.is_some_and(|update| update.is_ok()) {}
        })
    );
    assert_hides(&shown(&put.unwrap_err()), &[SECRET]);
    server.restart();
    eventually("the store takes writes again", async || brief.put("key", SECRET).await.is_ok())
        .await;
    assert_hides(&debugged(&(&connection, &store, &watch)), &[SECRET]);

    connection.shutdown().await.unwrap();
    assert_hides(&shown(&store.put("key", SECRET).await.unwrap_err()), &[SECRET]);
    assert!(log.has("disconnected"), "the log is captured");
    log.assert_hides(&[SECRET]);
}

#[tokio::test]
async fn a_refusal_by_the_server_is_logged_without_the_value() {
    let log = Log::captured();
    let server = NatsServer::builder()
        .config(
            "authorization { users: [
                { user: app, password: hunter2, permissions: { publish: { deny: [ \"$KV.*.denied\" ] } } }
            ] }",
        )
        .start();
    let connection = connect(&server.url_as("app:hunter2")).await.unwrap();
    let store = connection.store("config").await.unwrap();
    let error = store.put("denied", SECRET).await.unwrap_err();
    assert!(matches!(error, KvError::Unauthorized { .. }), "{error:?}");
    assert_hides(&shown(&error), &[SECRET]);
    assert!(log.has("denied"), "the refusal is logged");
    log.assert_hides(&[SECRET]);
}
