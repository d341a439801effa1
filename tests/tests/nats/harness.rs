//! Tests of the harness's guarantees: a test that relies on it need not manage processes itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use async_nats::{ConnectOptions, jetstream};
use shizuku_kv_tests::{NatsServer, TcpSilence, TestCerts, eventually, rerun, unique};

/// Time for a peer to send something, far longer than a running server needs.
const SILENCE: Duration = Duration::from_secs(1);

/// Set for a test of this file that runs again, in a process of its own.
const CHILD: &str = "SHIZUKU_HARNESS_CHILD";

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Returns a command that runs one test of this file in a process of its own.
fn child(test: &str) -> Command {
    let mut command = rerun(module_path!(), test);
    command.env(CHILD, "1");
    command
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
}

fn refuses(port: u16) -> bool {
    connect(port).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Returns the first data of the peer, or `None` if it is silent for a while.
fn greeting(port: u16) -> Option<String> {
    let stream = connect(port).unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let mut line = String::new();
    match BufReader::new(stream).read_line(&mut line) {
        Ok(_) => Some(line),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}

async fn bucket(server: &NatsServer, name: &str) -> jetstream::kv::Store {
    jetstream::new(server.client().await)
        .create_key_value(jetstream::kv::Config { bucket: name.into(), ..Default::default() })
        .await
        .unwrap()
}

#[tokio::test]
async fn a_started_server_takes_writes_at_once() {
    let server = NatsServer::start();
    let bucket = bucket(&server, "b").await;
    bucket.put("key", "value".into()).await.unwrap();
    assert_eq!(bucket.get("key").await.unwrap().as_deref(), Some(&b"value"[..]));
    assert!(server.store_dir().join("jetstream").is_dir());
    assert_eq!(server.url(), format!("nats://127.0.0.1:{}", server.port()));
}

#[test]
fn the_version_is_the_one_asked_for() {
    let server = NatsServer::start();
    if let Ok(asked) = std::env::var("NATS_SERVER_VERSION") {
        assert_eq!(server.version(), asked);
    }
    assert!(server.is_at_least(2, 10));
    assert!(server.is_at_least(1, 99));
    assert!(!server.is_at_least(2, 999));
    assert!(!server.is_at_least(3, 0));
}

#[test]
fn a_dropped_server_is_gone_with_its_files() {
    let server = NatsServer::start();
    let (port, store_dir) = (server.port(), server.store_dir());
    assert!(store_dir.exists());
    drop(server);
    assert!(refuses(port));
    assert!(!store_dir.exists());
}

#[tokio::test]
async fn a_restart_keeps_port_and_data() {
    let mut server = NatsServer::start();
    let (port, pid) = (server.port(), server.pid());
    let written = bucket(&server, "b").await;
    written.put("key", "value".into()).await.unwrap();

    server.kill();
    assert!(refuses(port));
    assert!(!server.is_running());
    server.restart();

    assert!(server.is_running());
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    let read = jetstream::new(server.client().await).get_key_value("b").await.unwrap();
    assert_eq!(read.get("key").await.unwrap().as_deref(), Some(&b"value"[..]));
}

#[test]
fn a_server_can_be_restarted_many_times() {
    let mut server = NatsServer::start();
    let port = server.port();
    for _ in 0..10 {
        server.restart();
        assert_eq!(server.port(), port);
    }
}

#[tokio::test]
async fn a_restart_waits_for_its_port() {
    let mut server = NatsServer::start();
    let port = server.port();
    let log = server.store_dir().with_file_name("server.log");
    server.kill();
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let restarting = std::thread::spawn(move || {
        server.restart();
        server
    });
    eventually("a start has failed", async || {
        std::fs::read_to_string(&log).unwrap().contains("address already in use")
    })
    .await;
    drop(holder);
    let mut server = restarting.join().unwrap();
    assert_eq!(server.port(), port);
    assert!(server.is_running());
}

#[test]
fn a_fixed_port_is_used() {
    let mut first = NatsServer::start();
    first.kill();
    let second = NatsServer::builder().port(first.port()).start();
    assert_eq!(second.port(), first.port());
}

#[test]
fn a_paused_server_is_silent_until_resumed() {
    let mut server = NatsServer::start();
    assert!(greeting(server.port()).unwrap().starts_with("INFO "));
    server.pause();
    assert_eq!(greeting(server.port()), None);
    server.resume();
    assert!(greeting(server.port()).unwrap().starts_with("INFO "));
}

#[test]
fn a_paused_server_can_be_killed() {
    let mut server = NatsServer::start();
    server.pause();
    server.kill();
    assert!(refuses(server.port()));
}

#[tokio::test]
async fn a_server_without_jetstream_starts() {
    let server = NatsServer::builder().jetstream(false).start();
    let account = jetstream::new(server.client().await).query_account().await;
    assert!(account.is_err());
}

#[tokio::test]
async fn options_reach_the_server() {
    let server = NatsServer::builder()
        .max_payload(4096)
        .config("ping_interval: \"1m\"")
        .config("server_name: named")
        .start();
    let info = server.client().await.server_info();
    assert_eq!(info.max_payload, 4096);
    assert_eq!(info.server_name, "named");
}

#[tokio::test]
async fn passwords_are_taken_as_they_are() {
    let password = "a \"quoted\" \\ $HOME é";
    let server = NatsServer::builder().user("first", password).user("second", "other").start();
    assert!(async_nats::connect(server.url()).await.is_err());
    for (name, password) in [("first", password), ("second", "other")] {
        let login = ConnectOptions::with_user_and_password(name.into(), password.into());
        login.connect(server.url()).await.unwrap();
    }
    let other = server.url_as("second:other");
    assert_eq!(other, format!("nats://second:other@127.0.0.1:{}", server.port()));
}

#[tokio::test]
async fn a_token_is_required() {
    let server = NatsServer::builder().token("sesame").start();
    assert!(async_nats::connect(server.url()).await.is_err());
    let login = ConnectOptions::with_token("sesame".into());
    login.connect(server.url()).await.unwrap();
}

#[tokio::test]
async fn an_nkey_is_required() {
    const PUBLIC: &str = "UBF5JXU4MMUWKT2KM75HKZJGJNMF462OL2IKLCCZV5CQGT65HWNWUX5N";
    const SEED: &str = "SUAPDK42K5XFNU4VFV4ZAUGENPRW7MQFDGIMHG7ZDOGMJFAAVELRULVQ6M";
    let server = NatsServer::builder().nkey(PUBLIC).start();
    assert!(async_nats::connect(server.url()).await.is_err());
    let login = ConnectOptions::with_nkey(SEED.into());
    login.connect(server.url()).await.unwrap();
}

#[tokio::test]
async fn tls_needs_the_test_authority_and_the_client_certificate() {
    let certs = TestCerts::generate();
    let server = NatsServer::builder()
        .tls(&certs.server().cert, &certs.server().key)
        .tls_client_ca(certs.ca())
        .start();
    let trusting = || ConnectOptions::new().add_root_certificates(certs.ca().to_path_buf());
    let client = certs.client().clone();

    assert!(server.url().starts_with("tls://"));
    assert!(async_nats::connect(server.url()).await.is_err());
    assert!(trusting().connect(server.url()).await.is_err());
    let options = trusting().add_client_certificate(client.cert, client.key);
    options.connect(server.url()).await.unwrap();
}

#[test]
fn a_server_that_cannot_start_shows_its_log() {
    let failure = std::panic::catch_unwind(|| {
        NatsServer::builder().config("no_such_option: 1").start();
    })
    .unwrap_err();
    let message = failure.downcast_ref::<String>().unwrap();
    assert!(message.contains("ended before it was ready"), "{message}");
    assert!(message.contains("no_such_option"), "{message}");
}

#[test]
fn a_missing_server_says_how_to_get_one() {
    if is_child() {
        NatsServer::start();
        return;
    }
    let output = child("a_missing_server_says_how_to_get_one")
        .env_remove("NATS_SERVER")
        .env("NATS_SERVER_VERSION", "0.0.1")
        .env("PATH", "")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = text(&output);
    assert!(text.contains("scripts/test"), "{text}");
    assert!(text.contains("nats-server-0.0.1"), "{text}");
}

#[test]
fn a_wrong_path_to_the_server_is_named() {
    if is_child() {
        NatsServer::start();
        return;
    }
    let output = child("a_wrong_path_to_the_server_is_named")
        .env("NATS_SERVER", "/no/such/nats-server")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = text(&output);
    assert!(text.contains("NATS_SERVER names /no/such/nats-server"), "{text}");
}

/// Returns the shared server's port and directory, printed by a child of this process.
fn reported(out: impl Read) -> (u16, String) {
    BufReader::new(out)
        .lines()
        .map(Result::unwrap)
        .find_map(|line| {
            let (_, report) = line.split_once("shared server: ")?;
            let (port, store_dir) = report.split_once(' ')?;
            Some((port.parse().unwrap(), store_dir.to_owned()))
        })
        .unwrap()
}

fn report_shared() {
    let shared = NatsServer::shared();
    assert!(std::ptr::eq(shared, NatsServer::shared()));
    println!("shared server: {} {}", shared.port(), shared.store_dir().display());
}

async fn is_cleared_away(port: u16, store_dir: &str) {
    eventually("the shared server is gone", async || refuses(port)).await;
    let home = Path::new(store_dir).parent().unwrap();
    eventually("its files are gone", async || !home.exists()).await;
}

#[tokio::test]
async fn the_shared_server_ends_with_the_process() {
    if is_child() {
        report_shared();
        return;
    }
    let output = child("the_shared_server_ends_with_the_process").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let (port, store_dir) = reported(&output.stdout[..]);
    is_cleared_away(port, &store_dir).await;
}

#[tokio::test]
async fn the_shared_server_ends_with_a_killed_process() {
    if is_child() {
        report_shared();
        loop {
            std::thread::park();
        }
    }
    let mut process = child("the_shared_server_ends_with_a_killed_process")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (port, store_dir) = reported(process.stdout.take().unwrap());
    assert!(!refuses(port));
    process.kill().unwrap();
    process.wait().unwrap();
    is_cleared_away(port, &store_dir).await;
}

#[tokio::test]
async fn a_paused_server_ends_with_a_killed_process() {
    if is_child() {
        let mut server = NatsServer::start();
        server.pause();
        println!("shared server: {} {}", server.port(), server.store_dir().display());
        loop {
            std::thread::park();
        }
    }
    let mut process =
        child("a_paused_server_ends_with_a_killed_process").stdout(Stdio::piped()).spawn().unwrap();
    let (port, store_dir) = reported(process.stdout.take().unwrap());
    process.kill().unwrap();
    process.wait().unwrap();
    is_cleared_away(port, &store_dir).await;
}

#[tokio::test]
async fn silence_accepts_and_says_nothing() {
    let silence = TcpSilence::start();
    assert_eq!(silence.url(), format!("nats://127.0.0.1:{}", silence.port()));
    assert_eq!(greeting(silence.port()), None);
    eventually("the connection is counted", async || silence.accepted() == 1).await;
    let port = silence.port();
    drop(silence);
    assert!(refuses(port));
}

#[test]
fn unique_names_differ_and_are_bucket_names() {
    let (one, two) = (unique("config"), unique("config"));
    assert_ne!(one, two);
    assert!(one.starts_with("config-"));
    assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
}
