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

use async_nats::jetstream;
use shizuku_kv_tests::{NatsServer, PATIENCE, TcpSilence, eventually, rerun, unique};

/// Time after which a peer that has sent nothing is silent, far longer than an idle machine needs.
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

/// Returns the first data of the peer, or `None` if it is silent for this time.
fn greeting(port: u16, patience: Duration) -> Option<String> {
    let stream = connect(port).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
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

#[test]
fn version_is_the_requested_one() {
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
fn dropped_server_is_gone_with_its_files() {
    let server = NatsServer::start();
    let (port, store_dir) = (server.port(), server.store_dir());
    assert!(store_dir.exists());
    drop(server);
    assert!(refuses(port));
    assert!(!store_dir.exists());
}

#[tokio::test]
async fn restart_keeps_port_and_data() {
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

#[tokio::test]
async fn restart_waits_for_its_port() {
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
fn fixed_port_is_used() {
    let mut first = NatsServer::start();
    first.kill();
    let second = NatsServer::builder().port(first.port()).start();
    assert_eq!(second.port(), first.port());
}

#[test]
fn paused_server_is_silent_until_resumed() {
    let mut server = NatsServer::start();
    assert!(greeting(server.port(), PATIENCE).unwrap().starts_with("INFO "));
    server.pause();
    assert_eq!(greeting(server.port(), SILENCE), None);
    server.resume();
    assert!(greeting(server.port(), PATIENCE).unwrap().starts_with("INFO "));
}

#[test]
fn server_that_cannot_start_shows_its_log() {
    let failure = std::panic::catch_unwind(|| {
        NatsServer::builder().config("no_such_option: 1").start();
    })
    .unwrap_err();
    let message = failure.downcast_ref::<String>().unwrap();
    assert!(message.contains("ended before it was ready"), "{message}");
    assert!(message.contains("no_such_option"), "{message}");
}

/// Returns the output of a child that cannot start a server.
fn failure(mut child: Command) -> String {
    let output = child.output().unwrap();
    assert!(!output.status.success());
    text(&output)
}

#[test]
fn missing_server_names_the_way_to_get_one() {
    const TEST: &str = "missing_server_names_the_way_to_get_one";
    if is_child() {
        NatsServer::start();
        return;
    }
    let mut missing = child(TEST);
    missing.env_remove("NATS_SERVER").env("NATS_SERVER_VERSION", "0.0.1").env("PATH", "");
    let text = failure(missing);
    assert!(text.contains("scripts/test") && text.contains("nats-server-0.0.1"), "{text}");
    let mut wrong = child(TEST);
    wrong.env("NATS_SERVER", "/no/such/nats-server");
    let text = failure(wrong);
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

fn report(server: &NatsServer) {
    println!("shared server: {} {}", server.port(), server.store_dir().display());
}

async fn is_cleared_away(port: u16, store_dir: &str) {
    eventually("the shared server is gone", async || refuses(port)).await;
    let home = Path::new(store_dir).parent().unwrap();
    eventually("its files are gone", async || !home.exists()).await;
}

/// Kills a child that runs this test once it has reported its server.
async fn ends_with_a_killed_process(test: &str) {
    let mut process = child(test).stdout(Stdio::piped()).spawn().unwrap();
    let (port, store_dir) = reported(process.stdout.take().unwrap());
    process.kill().unwrap();
    process.wait().unwrap();
    is_cleared_away(port, &store_dir).await;
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn shared_server_ends_with_a_killed_process() {
    if is_child() {
        let shared = NatsServer::shared();
        assert!(std::ptr::eq(shared, NatsServer::shared()));
        report(shared);
        park();
    }
    ends_with_a_killed_process("shared_server_ends_with_a_killed_process").await;
}

#[tokio::test]
async fn paused_server_ends_with_a_killed_process() {
    if is_child() {
        let mut server = NatsServer::start();
        server.pause();
        report(&server);
        park();
    }
    ends_with_a_killed_process("paused_server_ends_with_a_killed_process").await;
}

#[tokio::test]
async fn silence_accepts_and_says_nothing() {
    let silence = TcpSilence::start();
    assert_eq!(silence.url(), format!("nats://127.0.0.1:{}", silence.port()));
    assert_eq!(greeting(silence.port(), SILENCE), None);
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
