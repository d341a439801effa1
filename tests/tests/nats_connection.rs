//! Connecting to NATS, staying connected, and ending: every way in, every way of being kept out, and nothing hangs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::{BoxFuture, join_all};
use nkeys::KeyPair;
use serde_json::{Value, json};
use shizuku_kv::{
    Connection, KvError, KvResult, KvUpdate, NatsAuth, NatsConnection, NatsConnectionConfig, NatsTls,
    ReadConsistency, Store, StoreConfig, VersionToken, Watch, WatchScope, connect, nats_connect,
};
use shizuku_kv_tests::{NatsServer, TcpSilence, TestCerts, eventually, unique};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The deadline in tests where something does not answer.
const SHORT: Duration = Duration::from_millis(700);

/// What a busy machine may take beyond a deadline. Every default deadline is longer than both together.
const GRACE: Duration = Duration::from_secs(2);

/// The result of a future that has to end by a deadline.
async fn within<T>(deadline: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(deadline + GRACE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not end within {deadline:?} and {GRACE:?}"))
}

/// What connecting with a deadline of [`SHORT`] is refused with.
async fn refused(config: NatsConnectionConfig) -> KvError {
    let shown = format!("{config:?}");
    within(SHORT, &shown, nats_connect(config.connect_timeout(SHORT))).await.expect_err(&shown)
}

fn config(url: &str) -> NatsConnectionConfig {
    NatsConnectionConfig::from_url(url).unwrap()
}

async fn works(connection: &dyn Connection) {
    connection.health().await.unwrap();
    let store = connection.store(&unique("works")).await.unwrap();
    let version = store.put("key", "value").await.unwrap();
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
}

/// Connects and uses the connection.
async fn lets_in(config: NatsConnectionConfig) -> NatsConnection {
    let shown = format!("{config:?}");
    let connection = nats_connect(config).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
    works(&connection).await;
    connection
}

/// A port on which nothing listens.
fn closed_port() -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A server that greets as it is told, answers pings if it is told, and keeps what it hears.
struct FakeServer {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

impl FakeServer {
    async fn start(greeting: String, answers: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heard, open) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let (heard, open) = (Arc::clone(&heard), Arc::clone(&open));
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (greeting, heard, open) = (greeting.clone(), Arc::clone(&heard), Arc::clone(&open));
                    open.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(async move {
                        let _ = Self::serve(stream, &greeting, answers, &heard).await;
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Self { port, heard, open, _tasks: tasks }
    }

    /// A server of this version, as far as its greeting tells.
    async fn of_version(version: &str) -> Self {
        let info = json!({
            "server_id": "FAKE", "server_name": "fake", "version": version, "proto": 1, "go": "go1.19",
            "host": "127.0.0.1", "port": 4222, "headers": true, "max_payload": 1_048_576, "jetstream": true,
        });
        Self::start(format!("INFO {info}\r\n"), true).await
    }

    async fn serve(
        stream: TcpStream,
        greeting: &str,
        answers: bool,
        heard: &Mutex<Vec<String>>,
    ) -> std::io::Result<()> {
        let (read, mut write) = stream.into_split();
        write.write_all(greeting.as_bytes()).await?;
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await? {
            if answers && line == "PING" {
                write.write_all(b"PONG\r\n").await?;
            }
            heard.lock().unwrap().push(line);
        }
        Ok(())
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn heard(&self, text: &str) -> bool {
        self.heard.lock().unwrap().iter().any(|line| line.contains(text))
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

// ── Nobody there ────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn an_unreachable_server_is_unavailable_and_named() {
    let (one, two) = (closed_port(), closed_port());
    let error = refused(config(&format!("nats://app:hunter2@127.0.0.1:{one},127.0.0.1:{two}"))).await;
    assert!(matches!(error, KvError::Unavailable { operation: "connect", .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&one.to_string()) && text.contains(&two.to_string()), "{text}");
    assert!(error.is_retryable() && !format!("{text}{error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn a_host_that_has_no_address_is_unavailable_and_named() {
    let error = refused(config("nats://app:hunter2@no-such-host.invalid")).await;
    // A resolver may take its time to say so.
    assert!(matches!(error, KvError::Unavailable { .. } | KvError::Timeout { .. }), "{error:?}");
    if let KvError::Unavailable { reason, .. } = &error {
        assert!(reason.contains("no-such-host.invalid"), "{reason}");
    }
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_is_given_up_within_the_timeout() {
    let silence = TcpSilence::start();
    let port = silence.port();
    let tries = [
        config(&silence.url()),
        config(&format!("nats://app:hunter2@127.0.0.1:{port}")),
        config(&format!("tls://127.0.0.1:{port}")),
        config(&format!("tls://127.0.0.1:{port}?tls_first=true")),
        config(&format!("nats://127.0.0.1:{port},127.0.0.1:{port}")),
    ];
    for error in join_all(tries.map(refused)).await {
        assert!(matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }), "{error:?}");
        assert!(error.is_retryable(), "{error:?}");
    }
    assert!(silence.accepted() >= 5);

    let url = format!("{}?connect_timeout_ms={}", silence.url(), SHORT.as_millis());
    let error = within(SHORT, "connect", connect(&url)).await.unwrap_err();
    assert!(matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_no_nats_server_is_unavailable() {
    let half = r#"INFO {"server_id":"FAKE","version":"2.15.1","max_payload":1048576}"#;
    let greetings = [
        "HTTP/1.1 400 Bad Request\r\n\r\n".to_owned(),
        "INFO {}\r\n".to_owned(),
        "INFO nonsense\r\n".to_owned(),
        "-ERR 'maximum connections exceeded'\r\n".to_owned(),
        "\r\n".to_owned(),
        // A greeting that never ends, and a server that greets and says no more.
        half.to_owned(),
        format!("{half}\r\n"),
    ];
    let tries = greetings.into_iter().map(async |greeting| {
        let server = FakeServer::start(greeting.clone(), false).await;
        let error = refused(config(&server.url())).await;
        let kind = matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. });
        assert!(kind, "{greeting:?}: {error:?}");
        eventually("the connection is closed", async || server.open() == 0).await;
    });
    join_all(tries).await;
}

#[tokio::test]
async fn a_server_that_is_too_old_is_named_with_its_version_and_left() {
    for version in ["2.9.10", "2.9.25", "1.4.1", "0.1.0"] {
        let server = FakeServer::of_version(version).await;
        let error = within(SHORT, "connect", connect(&server.url())).await.unwrap_err();
        match &error {
            KvError::ServerTooOld { found, needed } => {
                assert_eq!((found.as_str(), *needed), (version, "2.10"))
            }
            _ => panic!("{version}: {error:?}"),
        }
        assert!(error.to_string().contains(version) && error.to_string().contains("2.10"), "{error}");
        assert!(!error.is_retryable());
        eventually("the connection is closed", async || server.open() == 0).await;
    }
}

#[tokio::test]
async fn the_oldest_server_that_works_is_let_be_and_sees_the_name() {
    for version in ["2.10.0", "2.15.1", "3.0.0", "2.16.0-beta.1"] {
        let server = FakeServer::of_version(version).await;
        let config = config(&format!("{}?name=billing%20%2F%207", server.url()));
        let connection = within(SHORT, "connect", nats_connect(config)).await.unwrap();
        assert_eq!(connection.server_version(), version);
        assert!(server.heard(r#""name":"billing / 7""#), "{:?}", server.heard);
    }
}

#[tokio::test]
async fn a_connection_that_is_dropped_or_shut_down_is_closed() {
    let server = FakeServer::of_version("2.15.1").await;
    let connection = connect(&server.url()).await.unwrap();
    assert_eq!(server.open(), 1);
    drop(connection);
    eventually("the connection is closed", async || server.open() == 0).await;

    let connection = connect(&server.url()).await.unwrap();
    assert_eq!(server.open(), 1);
    within(SHORT, "shutdown", connection.shutdown()).await.unwrap();
    eventually("the connection is closed", async || server.open() == 0).await;
}

#[tokio::test]
async fn a_server_that_is_down_does_not_keep_the_others_from_being_used() {
    let server = NatsServer::shared();
    for _ in 0..8 {
        // The client library tries them in an order of its own.
        let url = format!("nats://127.0.0.1:{},127.0.0.1:{}", closed_port(), server.port());
        works(&*connect(&url).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_server_that_never_answers_does_not_keep_the_others_from_being_used() {
    let (silence, server) = (TcpSilence::start(), NatsServer::shared());
    let url = format!("nats://127.0.0.1:{},127.0.0.1:{}", silence.port(), server.port());
    let timeout = Duration::from_secs(2);
    // In an order of the client library's own: until the silent one has been the first.
    while silence.accepted() == 0 {
        lets_in(config(&url).connect_timeout(timeout)).await;
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_before_anything_is_tried() {
    let silence = TcpSilence::start();
    for (field, config) in [
        ("servers", NatsConnectionConfig::new(Vec::<String>::new())),
        ("servers", NatsConnectionConfig::new(["nats://app:hunter2@127.0.0.1"])),
        ("connect_timeout", config(&silence.url()).connect_timeout(Duration::ZERO)),
        ("deadline", config(&silence.url()).deadline(Duration::ZERO)),
    ] {
        let shown = format!("{config:?}");
        let error = within(SHORT, &shown, nats_connect(config)).await.expect_err(&shown);
        match &error {
            KvError::InvalidConfig { field: named, .. } => assert!(named.contains(field), "{shown}: {error}"),
            _ => panic!("{shown}: {error:?}"),
        }
        assert!(!format!("{error:?}{shown}").contains("hunter2"), "{error:?}");
    }
    assert_eq!(silence.accepted(), 0);
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_before_anything_is_tried() {
    for address in ["", " ", "http://127.0.0.1", "127.0.0.1:99999", "nats://", "nats://127.0.0.1:port"] {
        let error = refused(NatsConnectionConfig::new([address])).await;
        assert!(matches!(error, KvError::InvalidConfig { field: "servers", .. }), "{address:?}: {error:?}");
        assert!(!error.is_retryable(), "{address:?}: {error:?}");
    }
}

// ── Credentials ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// An error that says that the credentials were refused, without them.
#[track_caller]
fn assert_unauthorized(error: &KvError) {
    assert!(matches!(error, KvError::Unauthorized { operation: "connect", .. }), "{error:?}");
    assert!(!error.is_retryable() && !format!("{error}{error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn a_user_with_the_right_password_is_let_in_and_nobody_else() {
    let server =
        NatsServer::builder().user("app", "hunter2").user("p@rt:ner", "hunter2:/?#[]@,%&= ü").start();
    lets_in(config(&server.url_as("app:hunter2"))).await;
    lets_in(config(&server.url_as("p%40rt%3Aner:hunter2%3A%2F%3F%23%5B%5D%40%2C%25%26%3D%20%C3%BC"))).await;
    let auth = |user: &str, password: &str| {
        let auth = NatsAuth::UserPassword { user: user.to_owned(), password: password.to_owned() };
        config(&server.url()).auth(auth)
    };
    lets_in(auth("app", "hunter2")).await;
    lets_in(auth("p@rt:ner", "hunter2:/?#[]@,%&= ü")).await;

    for config in [
        config(&server.url_as("app:hunter22")),
        config(&server.url_as("app:")),
        config(&server.url_as("nobody:hunter2")),
        config(&server.url_as("hunter2")),
        config(&server.url()),
        auth("app", "hunter22"),
        auth("app", ""),
    ] {
        assert_unauthorized(&refused(config).await);
    }
}

#[tokio::test]
async fn the_right_token_is_let_in_and_no_other() {
    let server = NatsServer::builder().token("hunter2 @:/").start();
    lets_in(config(&server.url_as("hunter2%20%40%3A%2F"))).await;
    lets_in(config(&server.url()).auth(NatsAuth::Token("hunter2 @:/".to_owned()))).await;
    for config in [
        config(&server.url_as("hunter2")),
        config(&server.url_as("app:hunter2")),
        config(&server.url()),
        config(&server.url()).auth(NatsAuth::Token(String::new())),
    ] {
        assert_unauthorized(&refused(config).await);
    }
}

/// A file with this text, in a folder that goes with it.
fn file(name: &str, text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[tokio::test]
async fn the_right_nkey_is_let_in_and_no_other() {
    let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
    let (seed, other) = (key.seed().unwrap(), other.seed().unwrap());
    let server = NatsServer::builder().nkey(&key.public_key()).start();
    lets_in(config(&server.url()).auth(NatsAuth::NKey(seed.clone()))).await;
    lets_in(config(&server.url()).auth(NatsAuth::NKey(format!("{seed}\n")))).await;

    let (_folder, path) = file("app.nk", format!("  {seed}\n"));
    lets_in(config(&format!("{}?nkey={}", server.url(), path.display()))).await;
    lets_in(config(&server.url()).auth(NatsAuth::NKeyFile(path))).await;

    for config in [config(&server.url()).auth(NatsAuth::NKey(other)), config(&server.url())] {
        assert_unauthorized(&refused(config).await);
    }
}

#[tokio::test]
async fn what_is_no_nkey_seed_is_refused_without_being_shown() {
    let seed = KeyPair::new_user().seed().unwrap();
    for bad in [
        String::new(),
        "hunter2".to_owned(),
        KeyPair::new_user().public_key(),
        KeyPair::new_account().seed().unwrap(),
        seed[..40].to_owned(),
    ] {
        let (_folder, path) = file("app.nk", &bad);
        // Nothing is listening: this has to show without a server.
        let url = format!("nats://127.0.0.1:{}", closed_port());
        for auth in [NatsAuth::NKey(bad.clone()), NatsAuth::NKeyFile(path)] {
            let error = refused(config(&url).auth(auth)).await;
            assert!(matches!(error, KvError::InvalidConfig { field: "nkey", .. }), "{bad:?}: {error:?}");
            assert!(bad.is_empty() || !format!("{error:?}").contains(&bad), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_mistyped_nkey_seed_is_refused_without_being_shown() {
    let key = KeyPair::new_user();
    let server = NatsServer::builder().nkey(&key.public_key()).start();
    let seed = key.seed().unwrap();
    for mistyped in [
        format!(
            "{}{}",
            &seed[..20],
            seed[20..].replace(&seed[30..31], if &seed[30..31] == "A" { "B" } else { "A" })
        ),
        format!("SU{}", "A".repeat(56)),
        format!("SU{}", "1".repeat(56)),
    ] {
        let error = refused(config(&server.url()).auth(NatsAuth::NKey(mistyped.clone()))).await;
        assert!(matches!(error, KvError::InvalidConfig { field: "nkey", .. }), "{mistyped:?}: {error:?}");
        assert!(!format!("{error:?}").contains(&mistyped), "{error:?}");
    }
}

/// A JWT as NATS has them: signed with an NKey.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "jti": unique("jwt"), "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name,
        "sub": subject.public_key(), "nats": nats,
    });
    let signed = format!("{}.{}", encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// An operator with one account that may use JetStream, and the one that the server itself needs for that.
struct Operator {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

impl Operator {
    fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
        }
    }

    fn server(&self) -> NatsServer {
        let Self { operator, system, account } = self;
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1,
        });
        let mut jetstream = unlimited.clone();
        for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
            jetstream[limit] = json!(-1);
        }
        let of_operator = |account: &KeyPair, name: &str, limits: Value| {
            jwt(operator, account, name, &json!({ "type": "account", "version": 2, "limits": limits }))
        };
        let trusted = jwt(operator, operator, "operator", &json!({ "type": "operator", "version": 2 }));
        let (system_id, account_id) = (system.public_key(), account.public_key());
        let system = of_operator(system, "system", unlimited);
        let account = of_operator(account, "tenant", jetstream);
        NatsServer::builder()
            .config(&format!("operator: \"{trusted}\"\nsystem_account: {system_id}\nresolver: MEMORY"))
            .config(&format!(
                "resolver_preload: {{ {system_id}: \"{system}\", {account_id}: \"{account}\" }}"
            ))
            .start()
    }

    /// The content of a credentials file for a new user, with the seed and the JWT in it.
    fn credentials(&self) -> Credentials {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let jwt = jwt(&self.account, &user, "app", &claims);
        let seed = user.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        Credentials { text, jwt, seed }
    }
}

struct Credentials {
    text: String,
    jwt: String,
    seed: String,
}

#[tokio::test]
async fn the_right_credentials_are_let_in_from_a_file_from_text_and_from_base64() {
    let operator = Operator::new();
    let server = operator.server();
    let credentials = operator.credentials();
    let (_folder, path) = file("app @ 1.creds", &credentials.text);

    let escaped = path.display().to_string().replace(' ', "%20").replace('@', "%40");
    let connection = connect(&format!("{}?creds={escaped}", server.url())).await.unwrap();
    works(&*connection).await;
    lets_in(config(&server.url()).auth(NatsAuth::CredentialsFile(path))).await;
    lets_in(config(&server.url()).auth(NatsAuth::Credentials(credentials.text.clone()))).await;

    let encoded = STANDARD.encode(&credentials.text);
    let wrapped = encoded.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
    let wrapped = wrapped.collect::<Vec<_>>().join("\n");
    for encoded in [encoded.clone(), format!(" {wrapped}\r\n")] {
        lets_in(config(&server.url()).auth(NatsAuth::credentials_base64(&encoded).unwrap())).await;
    }

    // Another operator's user, another user's seed, and nobody at all.
    let stranger = Operator::new().credentials();
    let mixed = credentials.text.replace(&credentials.seed, &stranger.seed);
    for auth in [NatsAuth::Credentials(stranger.text), NatsAuth::Credentials(mixed), NatsAuth::None] {
        let error = refused(config(&server.url()).auth(auth)).await;
        assert_unauthorized(&error);
        assert!(!format!("{error:?}").contains(&stranger.seed), "{error:?}");
    }
}

#[tokio::test]
async fn what_are_no_credentials_is_refused_without_being_shown() {
    let credentials = Operator::new().credentials();
    let url = format!("nats://127.0.0.1:{}", closed_port());
    for bad in [
        String::new(),
        "hunter2".to_owned(),
        credentials.jwt.clone(),
        credentials.seed.clone(),
        credentials.text[..credentials.text.len() / 2].to_owned(),
        credentials.text.replace(&credentials.seed, "hunter2"),
        credentials.text.replace(&credentials.seed, &format!("SU{}", "A".repeat(56))),
        STANDARD.encode(&credentials.text),
    ] {
        let (_folder, path) = file("app.creds", &bad);
        for auth in [NatsAuth::Credentials(bad.clone()), NatsAuth::CredentialsFile(path)] {
            let error = refused(config(&url).auth(auth)).await;
            assert!(
                matches!(error, KvError::InvalidConfig { field: "credentials", .. }),
                "{bad:?}: {error:?}"
            );
            for secret in ["hunter2", &credentials.seed, &credentials.jwt] {
                assert!(!format!("{error:?}").contains(secret), "{error:?}");
            }
        }
    }
    for bad in ["hunter2!", "/w==", "a"] {
        let error = NatsAuth::credentials_base64(bad).unwrap_err();
        assert!(matches!(error, KvError::InvalidConfig { field: "credentials", .. }), "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pem");
    let (certs, url) = (TestCerts::generate(), format!("nats://127.0.0.1:{}", closed_port()));
    let tls = NatsTls::new;
    for config in [
        config(&format!("{url}?creds={}", missing.display())),
        config(&format!("{url}?nkey={}", missing.display())),
        config(&format!("{url}?tls_ca={}", missing.display())),
        config(&format!("{url}?tls_cert={}&tls_key={}", missing.display(), certs.client().key.display())),
        config(&format!("{url}?tls_cert={}&tls_key={}", certs.client().cert.display(), missing.display())),
        config(&url).auth(NatsAuth::CredentialsFile(missing.clone())),
        config(&url).auth(NatsAuth::NKeyFile(missing.clone())),
        config(&url).tls(tls().root_certificates(&missing)),
        config(&url).tls(tls().client_certificate(&missing, &missing)),
    ] {
        let error = refused(config).await;
        assert!(matches!(error, KvError::InvalidConfig { .. }), "{error:?}");
        assert!(error.to_string().contains(&missing.display().to_string()), "{error}");
        assert!(error.to_string().contains("No such file"), "{error}");
    }
    // A folder is no file either.
    let error = refused(config(&url).auth(NatsAuth::CredentialsFile(folder.path().to_owned()))).await;
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
}

#[tokio::test]
async fn an_operation_that_the_server_does_not_allow_is_refused_at_once() {
    let server = NatsServer::builder()
        .config(
            "authorization { users: [
                { user: admin, password: hunter2 }
                { user: reader, password: hunter2, permissions: { publish: { deny: [ \"$KV.>\" ] } } }
                { user: nobody, password: hunter2, permissions: { publish: { deny: [ \"$JS.API.>\" ] } } }
            ] }",
        )
        .start();
    let patience = Duration::from_secs(60);
    let config_of = |user: &str| config(&server.url_as(&format!("{user}:hunter2"))).deadline(patience);
    let name = unique("allowed");
    let version = {
        let admin = lets_in(config_of("admin")).await;
        admin.store(&name).await.unwrap().put("key", "value").await.unwrap()
    };
    let assert_refused = |error: KvError| {
        assert!(matches!(error, KvError::Unauthorized { .. }), "{error:?}");
        assert!(!error.is_retryable() && !format!("{error:?}").contains("hunter2"), "{error:?}");
    };

    let reader = nats_connect(config_of("reader")).await.unwrap();
    let store = reader.store_with_config(&name, StoreConfig::new().deadline(patience)).await.unwrap();
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    // Long before their deadlines.
    assert_refused(within(SHORT, "put", store.put("key", "other")).await.unwrap_err());
    assert_refused(within(SHORT, "update", store.update("key", "other", version)).await.unwrap_err());
    assert_refused(within(SHORT, "create", store.create("new", "other")).await.unwrap_err());
    assert_refused(within(SHORT, "delete", store.delete("key")).await.unwrap_err());
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    // The refusals of some operations are not those of others.
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap(), ["key"]);

    let nobody = nats_connect(config_of("nobody")).await.unwrap();
    assert_refused(within(SHORT, "store", nobody.store(&name)).await.unwrap_err());
    assert_refused(within(SHORT, "health", nobody.health()).await.unwrap_err());
    assert_refused(within(SHORT, "delete_store", nobody.delete_store(&name)).await.unwrap_err());
    let listed = within(SHORT, "list_stores", nobody.list_stores().try_collect()).await;
    assert_refused(listed.unwrap_err());
}

#[tokio::test]
async fn operations_that_are_refused_at_the_same_time_are_all_told() {
    let deny = "permissions: { publish: { deny: [ \"$KV.*.a\", \"$KV.*.b\", \"$KV.*.c\" ] } }";
    let server = NatsServer::builder()
        .config(&format!("authorization {{ users: [ {{ user: app, password: hunter2, {deny} }} ] }}"))
        .start();
    let patience = StoreConfig::new().deadline(Duration::from_secs(60));
    let connection = connect(&server.url_as("app:hunter2")).await.unwrap();
    let store = connection.store_with_config("config", patience).await.unwrap();
    let writes = ["a", "b", "c", "d"].map(|key| (key, store.put(key, "x")));
    let ends = writes.into_iter().map(async |(key, write)| {
        let written = within(SHORT, key, write).await;
        match key {
            "d" => assert!(written.is_ok(), "{written:?}"),
            _ => assert!(matches!(written, Err(KvError::Unauthorized { .. })), "{key}: {written:?}"),
        }
    });
    join_all(ends).await;
    let many = store.put_many([("a", "x"), ("d", "x"), ("b", "x")]);
    let answers = within(SHORT, "put_many", many).await;
    assert!(
        matches!(&answers[..], [Err(KvError::Unauthorized { .. }), Ok(_), Err(KvError::Unauthorized { .. })]),
        "{answers:?}"
    );
}

// ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

fn trusting(url: &str, ca: &Path) -> NatsConnectionConfig {
    config(&format!("{url}?tls_ca={}", ca.display()))
}

#[tokio::test]
async fn a_server_with_a_certificate_of_our_own_root_is_trusted_and_no_other() {
    let (certs, others) = (TestCerts::generate(), TestCerts::generate());
    let server = NatsServer::builder().tls(&certs.server().cert, &certs.server().key).start();
    assert!(server.url().starts_with("tls://"));
    lets_in(trusting(&server.url(), certs.ca())).await;
    lets_in(trusting(&format!("tls://localhost:{}", server.port()), certs.ca())).await;
    // A server that asks for TLS gets it also from who did not insist.
    lets_in(trusting(&format!("nats://127.0.0.1:{}", server.port()), certs.ca())).await;
    lets_in(config(&server.url()).tls(NatsTls::new().required().root_certificates(certs.ca()))).await;

    for config in [config(&server.url()), trusting(&server.url(), others.ca())] {
        let error = refused(config).await;
        assert!(matches!(&error, KvError::Unavailable { reason, .. } if reason.contains("TLS")), "{error:?}");
        assert!(error.to_string().contains("certificate"), "{error}");
        assert!(error.to_string().contains(&server.port().to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_presented_where_the_server_wants_one() {
    let (certs, others) = (TestCerts::generate(), TestCerts::generate());
    let (cert, key) = (&certs.server().cert, &certs.server().key);
    let server = NatsServer::builder().tls(cert, key).tls_client_ca(certs.ca()).start();
    let with = |certs: &TestCerts, ca: &Path| {
        let (cert, key) = (certs.client().cert.display(), certs.client().key.display());
        config(&format!("{}?tls_ca={}&tls_cert={cert}&tls_key={key}", server.url(), ca.display()))
    };
    lets_in(with(&certs, certs.ca())).await;
    let tls = NatsTls::new().root_certificates(certs.ca());
    let tls = tls.client_certificate(&certs.client().cert, &certs.client().key);
    lets_in(config(&server.url()).tls(tls)).await;

    for config in [trusting(&server.url(), certs.ca()), with(&others, certs.ca())] {
        let error = refused(config).await;
        assert!(matches!(error, KvError::Unavailable { .. } | KvError::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains(&server.port().to_string()), "{error}");
    }
}

#[tokio::test]
async fn tls_is_insisted_on_where_the_url_does() {
    let server = NatsServer::shared();
    let error = refused(config(&format!("tls://app:hunter2@127.0.0.1:{}", server.port()))).await;
    assert!(matches!(&error, KvError::Unavailable { reason, .. } if reason.contains("TLS")), "{error:?}");
    assert!(error.to_string().contains(&server.port().to_string()), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    let error = refused(config(&server.url()).tls(NatsTls::new().required())).await;
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test]
async fn files_that_are_no_certificates_are_refused() {
    let certs = TestCerts::generate();
    let server = NatsServer::builder().tls(&certs.server().cert, &certs.server().key).start();
    let (_folder, rubbish) = file("rubbish.pem", "hunter2");
    let tls = || NatsTls::new().root_certificates(certs.ca());
    let (cert, key) = (&certs.client().cert, &certs.client().key);
    for tls in [
        NatsTls::new().root_certificates(&rubbish),
        tls().client_certificate(&rubbish, key),
        tls().client_certificate(cert, &rubbish),
        // The other way round.
        tls().client_certificate(key, cert),
    ] {
        let shown = format!("{tls:?}");
        let error = refused(config(&server.url()).tls(tls)).await;
        assert!(
            matches!(error, KvError::InvalidConfig { .. } | KvError::Unavailable { .. }),
            "{shown}: {error:?}"
        );
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

// ── What the server offers ──────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_server_without_jetstream_is_said_to_have_none() {
    let server = NatsServer::builder().jetstream(false).start();
    let connection = connect(&server.url()).await.unwrap();
    for (what, error) in [
        ("store", within(SHORT, "store", connection.store("config")).await.unwrap_err()),
        ("health", within(SHORT, "health", connection.health()).await.unwrap_err()),
        ("delete_store", within(SHORT, "delete_store", connection.delete_store("config")).await.unwrap_err()),
        (
            "list_stores",
            within(SHORT, "list_stores", connection.list_stores().try_collect()).await.unwrap_err(),
        ),
    ] {
        assert!(matches!(error, KvError::Unavailable { .. }), "{what}: {error:?}");
        assert!(
            error.to_string().contains("JetStream") && error.to_string().contains("enabled"),
            "{what}: {error}"
        );
    }
    connection.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_account_without_jetstream_is_said_to_have_none() {
    let server = NatsServer::builder()
        .config("accounts { PLAIN { users: [ { user: app, password: hunter2 } ] } }")
        .start();
    let connection = connect(&server.url_as("app:hunter2")).await.unwrap();
    let error = within(SHORT, "store", connection.store("config")).await.unwrap_err();
    assert!(matches!(error, KvError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("JetStream") && error.to_string().contains("account"), "{error}");
}

#[tokio::test]
async fn the_servers_payload_limits_the_values() {
    let server = NatsServer::builder().max_payload(16 * 1024).start();
    let connection = connect(&server.url()).await.unwrap();
    let wide = StoreConfig::new().max_value_size(1 << 20);
    for store in [
        connection.store("default").await.unwrap(),
        connection.store_with_config("wide", wide).await.unwrap(),
    ] {
        let limit = store.max_value_size();
        assert!((15 * 1024..=16 * 1024).contains(&limit), "{limit}");
        let key = "k".repeat(1024);
        let version = store.put(&key, vec![0; limit]).await.unwrap();
        let version = store.update(&key, vec![1; limit], version).await.unwrap();
        match store.put(&key, vec![2; limit + 1]).await.unwrap_err() {
            KvError::ValueTooLarge { size, limit: told, .. } => assert_eq!((size, told), (limit + 1, limit)),
            error => panic!("{error:?}"),
        }
        // The connection has not been closed for it.
        assert_eq!(store.get(&key).await.unwrap().unwrap().version, version);
    }
}

// ── Ending ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Every operation, each by itself.
fn operations<'a>(
    connection: &'a dyn Connection,
    store: &'a Store,
    [updated, deleted]: [VersionToken; 2],
) -> Vec<(&'static str, BoxFuture<'a, KvResult<()>>)> {
    async fn first<T>(item: Option<KvResult<T>>) -> KvResult<()> {
        item.expect("an item, be it an error").map(drop)
    }
    vec![
        ("get", Box::pin(async { store.get("key").await.map(drop) })),
        ("entry", Box::pin(async { store.entry("key").await.map(drop) })),
        ("get_many_of_one", Box::pin(async { store.get_many(["key"]).await.map(drop) })),
        ("get_many", Box::pin(async { store.get_many((0..50).map(|i| format!("k{i}"))).await.map(drop) })),
        ("history", Box::pin(async { first(store.history("key")?.next().await).await })),
        ("scan", Box::pin(async { first(store.scan(WatchScope::All).next().await).await })),
        ("keys", Box::pin(async { first(store.keys(WatchScope::prefix("k")).next().await).await })),
        ("put", Box::pin(async { store.put("w.put", "x").await.map(drop) })),
        ("create", Box::pin(async { store.create("w.create", "x").await.map(drop) })),
        ("update", Box::pin(async move { store.update("w.update", "x", updated).await.map(drop) })),
        ("delete", Box::pin(async { store.delete("w.delete").await.map(drop) })),
        (
            "delete_with_version",
            Box::pin(
                async move { store.delete_with_version("w.delete_with_version", deleted).await.map(drop) },
            ),
        ),
        ("purge", Box::pin(async { store.purge("w.purge").await.map(drop) })),
        (
            "put_many",
            Box::pin(async {
                let mut answers = store.put_many((0..50).map(|i| (format!("w.many.{i}"), "x"))).await;
                assert_eq!(answers.len(), 50);
                assert!(
                    answers.iter().all(Result::is_err) || answers.iter().all(Result::is_ok),
                    "{answers:?}"
                );
                answers.remove(0).map(drop)
            }),
        ),
        ("watch", Box::pin(async { store.watch(WatchScope::All).await.map(drop) })),
        ("store", Box::pin(async { connection.store("other").await.map(drop) })),
        (
            "store_with_config",
            Box::pin(async {
                connection.store_with_config(store.name(), StoreConfig::new().must_exist()).await.map(drop)
            }),
        ),
        ("list_stores", Box::pin(async { first(connection.list_stores().next().await).await })),
        ("delete_store", Box::pin(async { connection.delete_store("other").await })),
        ("health", Box::pin(async { connection.health().await })),
    ]
}

/// The next update, which has to be one of this key.
async fn next_of(watch: &mut Watch, key: &str) -> KvUpdate {
    let patience = Duration::from_secs(20);
    let update = within(patience, "the watch", watch.next()).await.expect("the watch goes on").unwrap();
    assert_eq!(update.entry().map(|entry| entry.key.as_str()), Some(key), "{update:?}");
    update
}

async fn caught_up(store: &Store, scope: WatchScope) -> Watch {
    let mut watch = store.watch(scope).await.unwrap();
    while watch.next().await.unwrap().unwrap() != KvUpdate::CaughtUp {}
    watch
}

#[tokio::test]
async fn shutdown_flushes_what_was_written_and_then_everything_is_closed() {
    const WRITES: usize = 300;
    let server = NatsServer::shared();
    let (name, connection) = (unique("shutdown"), connect(&server.url()).await.unwrap());
    let store = connection.store(&name).await.unwrap();
    let version = store.put("key", "x").await.unwrap();
    let mut watch = caught_up(&store, WatchScope::prefix("none.")).await;

    let writes: Vec<_> = (0..WRITES)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move { store.put(format!("w.{i}"), i.to_string()).await })
        })
        .collect();
    // On this runtime of one thread they are all sent after some turns, a few dozen in each.
    for _ in 0..WRITES {
        tokio::task::yield_now().await;
    }
    connection.shutdown().await.unwrap();
    let mut versions = Vec::new();
    for (i, write) in writes.into_iter().enumerate() {
        versions.push(write.await.unwrap().unwrap_or_else(|error| panic!("write {i}: {error}")));
    }

    for (what, operation) in operations(&*connection, &store, [version; 2]) {
        let error = within(SHORT, what, operation).await.expect_err(what);
        assert!(matches!(error, KvError::Closed { .. }), "{what}: {error:?}");
        assert!(!error.is_retryable() && error.to_string().contains("shut down"), "{what}: {error}");
    }
    let ended = within(SHORT, "the watch", watch.next()).await;
    assert!(matches!(ended, Some(Err(KvError::Closed { .. }))), "{ended:?}");
    assert!(watch.next().await.is_none());
    within(SHORT, "a second shutdown", connection.shutdown()).await.unwrap();
    drop(connection);

    let other = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    for (i, version) in versions.into_iter().enumerate() {
        let entry = other.get(format!("w.{i}")).await.unwrap().unwrap();
        assert_eq!((entry.version, &entry.value[..]), (version, i.to_string().as_bytes()));
    }
}

#[tokio::test]
async fn a_write_during_the_shutdown_happened_or_is_told_that_it_did_not() {
    const WRITES: usize = 1000;
    let server = NatsServer::shared();
    let (name, connection) = (unique("shutdown"), connect(&server.url()).await.unwrap());
    let store = connection.store(&name).await.unwrap();
    let mut writes = JoinSet::new();
    for i in 0..WRITES {
        let store = store.clone();
        writes.spawn(async move { (i, store.put(format!("w.{i}"), "x").await) });
    }
    connection.shutdown().await.unwrap();
    let results = writes.join_all().await;
    let other = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    let mut unknown = 0;
    for (i, result) in results {
        let there = other.get(format!("w.{i}")).await.unwrap().map(|entry| entry.version);
        match result {
            Ok(version) => assert_eq!(there, Some(version)),
            Err(KvError::Closed { .. }) => assert_eq!(there, None, "write {i} was to be refused"),
            Err(KvError::OutcomeUnknown { .. }) => unknown += 1,
            Err(error) => panic!("write {i}: {error:?}"),
        }
    }
    assert_eq!(unknown, 0, "of {WRITES} writes, on a connection that was fine all the time");
}

#[tokio::test]
async fn a_scan_that_is_under_way_at_the_shutdown_is_complete_or_fails() {
    const KEYS: usize = 3000;
    let connection = connect(&NatsServer::shared().url()).await.unwrap();
    let store = connection.store(&unique("shutdown")).await.unwrap();
    let written = store.put_many((0..KEYS).map(|i| (format!("k.{i}"), "x"))).await;
    assert!(written.iter().all(Result::is_ok));
    let mut scan = store.scan(WatchScope::All);
    scan.next().await.unwrap().unwrap();
    connection.shutdown().await.unwrap();
    let mut count = 1;
    loop {
        match within(store.deadline(), "the scan", scan.next()).await {
            Some(Ok(_)) => count += 1,
            Some(Err(error)) => {
                assert!(matches!(error, KvError::Closed { .. }), "{error:?}");
                break;
            }
            None => {
                assert_eq!(count, KEYS, "the scan ended as if that were all");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_waiting_operation_and_a_waiting_watch_end_with_the_shutdown() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("config").await.unwrap().with_deadline(Duration::from_secs(60));
    let mut watch = caught_up(&store, WatchScope::All).await;
    server.kill();
    eventually("the server is missed", async || {
        store.with_deadline(Duration::from_millis(100)).get("key").await.is_err()
    })
    .await;
    let watching = tokio::spawn(async move { (watch.next().await, watch.next().await.is_none()) });
    let getting = tokio::spawn(async move { store.get("key").await });
    tokio::task::yield_now().await;
    // There is nobody to flush to; what matters is that it ends.
    let _ = within(SHORT, "shutdown", connection.shutdown()).await;
    let got = within(SHORT, "get", getting).await.unwrap();
    assert!(matches!(got, Err(KvError::Closed { .. })), "{got:?}");
    let patience = Duration::from_secs(20);
    let (ended, then) = within(patience, "the watch", watching).await.unwrap();
    assert!(matches!(ended, Some(Err(KvError::Closed { .. }))) && then, "{ended:?}");
}

// ── Trouble ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn health_is_what_the_server_is() {
    let mut server = NatsServer::start();
    let connection = nats_connect(config(&server.url()).deadline(SHORT)).await.unwrap();
    connection.health().await.unwrap();
    server.kill();
    eventually("the connection is not healthy", async || {
        let health = within(SHORT, "health", connection.health()).await;
        if let Err(error) = &health {
            assert!(matches!(error, KvError::Unavailable { .. } | KvError::Timeout { .. }), "{error:?}");
            assert!(error.is_retryable(), "{error:?}");
        }
        health.is_err()
    })
    .await;
    server.restart();
    eventually("the connection is healthy again", async || connection.health().await.is_ok()).await;
}

#[tokio::test]
async fn after_a_restart_the_same_handles_work_again_and_a_watch_goes_on() {
    let mut server = NatsServer::builder().user("app", "hunter2").start();
    let connection = connect(&server.url_as("app:hunter2")).await.unwrap();
    let store = connection.store("config").await.unwrap();
    let first = store.put("key", "one").await.unwrap();
    let mut watch = caught_up(&store, WatchScope::All).await;
    let mut unread = caught_up(&store, WatchScope::All).await;
    let mut seen = first.as_u64();
    for round in 0..3 {
        server.restart();
        let value = format!("round {round}");
        eventually("the store takes writes again", async || store.put("key", value.clone()).await.is_ok())
            .await;
        // A put whose answer got lost may have been repeated here: the newest value is what has to arrive.
        let newest = store.get("key").await.unwrap().unwrap();
        assert_ne!(newest.version, first);
        while seen < newest.version.as_u64() {
            let version = next_of(&mut watch, "key").await.entry().unwrap().version.as_u64();
            assert!(version > seen, "nothing arrives twice, and nothing goes back");
            seen = version;
        }
        works(&*connection).await;
    }
    // One that was not polled meanwhile has the last value too.
    let newest = store.get("key").await.unwrap().unwrap();
    while next_of(&mut unread, "key").await.entry().unwrap().version != newest.version {}
    store.delete("key").await.unwrap();
    assert!(matches!(next_of(&mut watch, "key").await, KvUpdate::Delete(_)));
    assert!(matches!(next_of(&mut unread, "key").await, KvUpdate::Delete(_)));
}

#[tokio::test]
async fn an_operation_waits_for_a_server_that_comes_back_in_time() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("config").await.unwrap().with_deadline(Duration::from_secs(20));
    let version = store.put("key", "x").await.unwrap();
    server.kill();
    eventually("the server is missed", async || {
        store.with_deadline(Duration::from_millis(100)).get("key").await.is_err()
    })
    .await;
    let reading = tokio::spawn({
        let store = store.clone();
        async move { store.get("key").await }
    });
    let writing = tokio::spawn(async move { store.update("key", "y", version).await });
    tokio::task::yield_now().await;
    server.restart();
    reading.await.unwrap().unwrap();
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn while_no_server_is_there_every_operation_ends_by_its_deadline() {
    let mut server = NatsServer::start();
    let connection = nats_connect(config(&server.url()).deadline(SHORT)).await.unwrap();
    let store = connection.store_with_config("config", StoreConfig::new().deadline(SHORT)).await.unwrap();
    let version = store.put("key", "x").await.unwrap();
    server.kill();
    eventually("the server is missed", async || {
        store.with_deadline(Duration::from_millis(100)).get("key").await.is_err()
    })
    .await;
    let mut all = operations(&connection, &store, [version; 2]);
    // It has a test of its own.
    all.retain(|(what, _)| *what != "put_many");
    let ends = all.into_iter().map(async |(what, operation)| {
        let error = within(SHORT, what, operation).await.expect_err(what);
        // Nothing was sent, so that nothing is unknown.
        assert!(matches!(error, KvError::Unavailable { .. } | KvError::Timeout { .. }), "{what}: {error:?}");
        assert!(error.is_retryable(), "{what}: {error:?}");
    });
    join_all(ends).await;
    // What cannot be is still refused for what it is.
    assert!(matches!(store.put("a b", "x").await, Err(KvError::InvalidKey { .. })));
    assert!(matches!(store.put("key", vec![0; 1 << 21]).await, Err(KvError::ValueTooLarge { .. })));
}

#[tokio::test]
async fn while_no_server_is_there_many_writes_end_by_their_deadline_too() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store_with_config("config", StoreConfig::new().deadline(SHORT)).await.unwrap();
    server.kill();
    eventually("the server is missed", async || {
        store.with_deadline(Duration::from_millis(100)).get("key").await.is_err()
    })
    .await;
    let many = store.put_many((0..50).map(|i| (format!("key.{i}"), "x")));
    for answer in within(SHORT, "put_many", many).await {
        assert!(matches!(answer, Err(KvError::Unavailable { .. } | KvError::Timeout { .. })), "{answer:?}");
    }
}

/// Everything that can be asked of a server that is there and does not answer.
async fn ends_by_its_deadline_while_the_server_is_paused(consistency: ReadConsistency) {
    let mut server = NatsServer::start();
    let connection = nats_connect(config(&server.url()).deadline(SHORT)).await.unwrap();
    let settings = StoreConfig::new().deadline(SHORT).consistency(consistency);
    let store = connection.store_with_config("config", settings).await.unwrap();
    let mut versions = Vec::new();
    for key in ["key", "w.update", "w.delete", "w.delete_with_version", "w.purge"] {
        versions.push((key, store.put(key, "before").await.unwrap()));
    }
    connection.store("other").await.unwrap();
    let mut watch = caught_up(&store, WatchScope::All).await;
    let cursor = watch.cursor().unwrap();

    server.pause();
    let mut all = operations(&connection, &store, [versions[1].1, versions[3].1]);
    all.push(("watch_from", Box::pin(async { store.watch_from(WatchScope::All, cursor).await.map(drop) })));
    let ends = all.into_iter().map(async |(what, operation)| {
        let error = within(SHORT, what, operation).await.expect_err(what);
        (what, error)
    });
    let errors = join_all(ends).await;
    server.resume();

    for (what, error) in &errors {
        match error {
            KvError::Timeout { .. } | KvError::Unavailable { .. } => assert!(error.is_retryable()),
            KvError::OutcomeUnknown { .. } => assert!(!error.is_retryable()),
            _ => panic!("{what}: {error:?}"),
        }
    }
    // Everything works again.
    let patience = Duration::from_secs(20);
    let store = store.with_deadline(patience);
    let last = within(patience, "put", store.put("after", "x")).await.unwrap();
    within(patience, "health", connection.health()).await.unwrap();
    within(patience, "get", store.get("key")).await.unwrap().unwrap();
    let keys = within(patience, "keys", store.keys(WatchScope::All).try_collect()).await.unwrap();
    assert!(keys.len() >= 4, "{keys:?}");
    loop {
        let update = within(patience, "the watch", watch.next()).await.unwrap().unwrap();
        if update.entry().is_some_and(|entry| entry.version == last) {
            break;
        }
    }
    // What was said not to have happened has not: `after` was written behind everything that had been sent.
    for (what, error) in &errors {
        let key = match *what {
            "put_many" => "w.many.0".to_owned(),
            what => format!("w.{what}"),
        };
        if matches!(error, KvError::OutcomeUnknown { .. }) {
            continue;
        }
        let before = versions.iter().find(|(before, _)| *before == key).map(|(_, version)| *version);
        let now = store.entry(&key).await.unwrap().map(|entry| entry.version);
        assert_eq!(now, before, "{what} was not to have happened: {error:?}");
    }
}

#[tokio::test]
async fn while_the_server_does_not_answer_every_operation_ends_by_its_deadline() {
    ends_by_its_deadline_while_the_server_is_paused(ReadConsistency::Any).await;
}

#[tokio::test]
async fn while_the_server_does_not_answer_leader_reads_end_by_their_deadline_too() {
    ends_by_its_deadline_while_the_server_is_paused(ReadConsistency::Leader).await;
}

#[tokio::test]
async fn a_shutdown_that_cannot_flush_says_so_and_closes_all_the_same() {
    let mut server = NatsServer::start();
    let connection = nats_connect(config(&server.url()).deadline(SHORT)).await.unwrap();
    let store = connection.store("config").await.unwrap().with_deadline(Duration::from_secs(60));
    let version = store.put("key", "x").await.unwrap();
    server.pause();
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.put("key", "y").await }
    });
    tokio::task::yield_now().await;
    let error = within(SHORT, "shutdown", connection.shutdown()).await.unwrap_err();
    assert!(matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }), "{error:?}");
    // The write is on its way, so that only this can be said of it.
    let written = within(SHORT, "put", writing).await.unwrap();
    assert!(matches!(written, Err(KvError::OutcomeUnknown { .. })), "{written:?}");
    for (what, operation) in operations(&connection, &store, [version; 2]) {
        let error = within(SHORT, what, operation).await.expect_err(what);
        assert!(matches!(error, KvError::Closed { .. }), "{what}: {error:?}");
    }
    within(SHORT, "a second shutdown", connection.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_connect_to_a_paused_server_ends_within_the_timeout() {
    let mut server = NatsServer::start();
    server.pause();
    let error = refused(config(&server.url())).await;
    assert!(matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }), "{error:?}");
    server.resume();
    lets_in(config(&server.url())).await;
}
