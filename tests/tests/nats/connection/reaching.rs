//! Reaching a server: an address without a server, a silent one, one that is not NATS, and the
//! other addresses of a list.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use shizuku_kv::{KvError, NatsConnectionConfig, connect, nats_connect};
use shizuku_kv_tests::{NatsServer, TcpSilence, eventually};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{SHORT, closed_port, config, lets_in, refused, within, works};

/// A server that sends a set greeting, answers pings on request, and records its input.
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
                    let (greeting, heard, open) =
                        (greeting.clone(), Arc::clone(&heard), Arc::clone(&open));
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

    /// Returns a server that reports this version.
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

#[tokio::test]
async fn unreachable_server_is_unavailable_and_named() {
    let (one, two) = (closed_port(), closed_port());
    let error =
        refused(config(&format!("nats://app:hunter2@127.0.0.1:{one},127.0.0.1:{two}"))).await;
    assert!(matches!(error, KvError::Unavailable { operation: "connect", .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&one.to_string()) && text.contains(&two.to_string()), "{text}");
    assert!(error.is_retryable() && !format!("{text}{error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn host_without_address_is_unavailable_and_named() {
    let error = refused(config("nats://app:hunter2@no-such-host.invalid")).await;
    // A resolver may be slow to report it.
    assert!(matches!(error, KvError::Unavailable { .. } | KvError::Timeout { .. }), "{error:?}");
    if let KvError::Unavailable { reason, .. } = &error {
        assert!(reason.contains("no-such-host.invalid"), "{reason}");
    }
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn silent_server_is_given_up_within_the_timeout() {
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
        assert!(
            matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }),
            "{error:?}"
        );
        assert!(error.is_retryable(), "{error:?}");
        assert!(error.to_string().contains("the port for clients of a NATS server"), "{error}");
    }
    assert!(silence.accepted() >= 5);

    let url = format!("{}?connect_timeout_ms={}", silence.url(), SHORT.as_millis());
    let error = within(SHORT, "connect", connect(&url)).await.unwrap_err();
    assert!(matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn server_of_another_protocol_is_unavailable() {
    let half = r#"INFO {"server_id":"FAKE","version":"2.15.1","max_payload":1048576}"#;
    let greetings = [
        "HTTP/1.1 400 Bad Request\r\n\r\n".to_owned(),
        "INFO {}\r\n".to_owned(),
        "INFO nonsense\r\n".to_owned(),
        "-ERR 'maximum connections exceeded'\r\n".to_owned(),
        "\r\n".to_owned(),
        // A greeting that never ends, and a server that is silent after its greeting.
        half.to_owned(),
        format!("{half}\r\n"),
    ];
    let tries = greetings.into_iter().map(async |greeting| {
        let server = FakeServer::start(greeting.clone(), false).await;
        let error = refused(config(&server.url())).await;
        let kind = match greeting.contains("maximum connections") {
            true => matches!(error, KvError::LimitReached { .. }),
            false => matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }),
        };
        assert!(kind, "{greeting:?}: {error:?}");
        let text = error.to_string();
        let is_full = greeting.contains("maximum connections");
        assert!(
            is_full || text.contains("the port for clients of a NATS server"),
            "{greeting:?}: {text}"
        );
        eventually("the connection is closed", async || server.open() == 0).await;
    });
    join_all(tries).await;
}

#[tokio::test]
async fn server_that_is_too_old_is_named_and_left() {
    for version in ["2.9.10", "2.9.25", "1.4.1", "0.1.0"] {
        let server = FakeServer::of_version(version).await;
        let error = within(SHORT, "connect", connect(&server.url())).await.unwrap_err();
        match &error {
            KvError::ServerTooOld { found, needed, .. } => {
                assert_eq!((found.as_str(), *needed), (version, "2.10"))
            }
            _ => panic!("{version}: {error:?}"),
        }
        assert!(
            error.to_string().contains(version) && error.to_string().contains("2.10"),
            "{error}"
        );
        assert!(!error.is_retryable());
        eventually("the connection is closed", async || server.open() == 0).await;
    }
}

#[tokio::test]
async fn supported_server_sees_the_name() {
    for version in ["2.10.0", "2.15.1", "3.0.0", "2.16.0-beta.1"] {
        let server = FakeServer::of_version(version).await;
        let config = config(&format!("{}?name=billing%20%2F%207", server.url()));
        let connection = within(SHORT, "connect", nats_connect(config)).await.unwrap();
        assert_eq!(connection.server_version(), version);
        assert!(server.heard(r#""name":"billing / 7""#), "{:?}", server.heard);
    }
}

#[tokio::test]
async fn server_that_is_down_does_not_hide_the_others() {
    let server = NatsServer::shared();
    for _ in 0..8 {
        // The client library tries them in an order of its own.
        let url = format!("nats://127.0.0.1:{},127.0.0.1:{}", closed_port(), server.port());
        works(&*connect(&url).await.unwrap()).await;
    }
}

#[tokio::test]
async fn silent_server_does_not_hide_the_others() {
    let (silence, server) = (TcpSilence::start(), NatsServer::shared());
    let url = format!("nats://127.0.0.1:{},127.0.0.1:{}", silence.port(), server.port());
    // Each of the two servers has half of it.
    let timeout = Duration::from_secs(6);
    // The order is the client library's, so this repeats until the silent one has been the first.
    while silence.accepted() == 0 {
        lets_in(config(&url).connect_timeout(timeout)).await;
    }
}

#[tokio::test]
async fn impossible_settings_are_rejected_before_any_attempt() {
    let silence = TcpSilence::start();
    let invalid =
        ["", " ", "http://127.0.0.1", "127.0.0.1:99999", "nats://", "nats://127.0.0.1:port"]
            .map(|address| ("servers", NatsConnectionConfig::new([address])));
    for (field, config) in [
        ("servers", NatsConnectionConfig::new(Vec::<String>::new())),
        ("servers", NatsConnectionConfig::new(["nats://app:hunter2@127.0.0.1"])),
        ("connect_timeout", config(&silence.url()).connect_timeout(Duration::ZERO)),
        ("deadline", config(&silence.url()).deadline(Duration::ZERO)),
    ]
    .into_iter()
    .chain(invalid)
    {
        let shown = format!("{config:?}");
        let error = within(SHORT, &shown, nats_connect(config)).await.expect_err(&shown);
        match &error {
            KvError::InvalidConfig { field: named, .. } => {
                assert!(named.contains(field), "{shown}: {error}")
            }
            _ => panic!("{shown}: {error:?}"),
        }
        assert!(!error.is_retryable(), "{shown}: {error:?}");
        assert!(!format!("{error:?}{shown}").contains("hunter2"), "{error:?}");
    }
    assert_eq!(silence.accepted(), 0);
}
