//! A nats-server of our own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A nats-server on a free port, with its files in a temporary directory.
pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
    monitor: u16,
    pub(crate) version: String,
    _home: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let ports = home.path().join("ports");
        std::fs::create_dir(&ports).expect("a directory");
        let binary = binary();
        let mut process = Command::new(&binary)
            .args(["--addr", "127.0.0.1", "--port", "-1", "-m", "-1", "--jetstream", "--store_dir"])
            .arg(home.path().join("store"))
            .arg("--ports_file_dir")
            .arg(&ports)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", binary.display()));
        let deadline = Instant::now() + Duration::from_secs(20);
        let (port, monitor, info) = loop {
            let ready = listening_ports(&ports)
                .and_then(|(port, monitor)| Some((port, monitor, greeting(port)?)));
            if let Some(ready) = ready.filter(|(.., info)| info.contains("\"jetstream\":true")) {
                break ready;
            }
            if Instant::now() > deadline || process.try_wait().is_ok_and(|ended| ended.is_some()) {
                let _ = process.kill();
                panic!("{} does not start", binary.display());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let version = info.split("\"version\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let version = version.unwrap_or("?").to_owned();
        Self { process, port, monitor, version, _home: home }
    }

    /// Returns the number of messages that clients have sent.
    pub(crate) fn messages(&self) -> u64 {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.monitor)).unwrap();
        stream.write_all(b"GET /varz HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (_, after) = text.split_once("\"in_msgs\": ").unwrap();
        after.split_once(',').unwrap().0.parse().unwrap()
    }

    #[allow(dead_code, reason = "benches/versions does not need it")]
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The ports for clients and for the monitor, in the file which the server writes once it listens.
fn listening_ports(ports: &Path) -> Option<(u16, u16)> {
    let file = std::fs::read_dir(ports).ok()?.next()?.ok()?;
    let text = std::fs::read_to_string(file.path()).ok()?;
    let port = |of: &str| {
        let (_, after) = text.split_once(&format!("\"{of}\":[\""))?;
        after.split_once('"')?.0.rsplit(':').next()?.parse().ok()
    };
    Some((port("nats")?, port("monitoring")?))
}

/// The line with which the server greets.
fn greeting(port: u16) -> Option<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(1 << 20)).read_line(&mut line).ok()?;
    Some(line)
}

/// Returns the server of the tests: `NATS_SERVER`, the one of `scripts/test`, or one in `PATH`.
fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("NATS_SERVER").filter(|named| !named.is_empty()) {
        return named.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pinned =
        std::fs::read_to_string(root.join("scripts/nats-server.sha256")).unwrap_or_default();
    let pinned =
        pinned.lines().find(|line| !line.starts_with('#')).and_then(|line| line.split('-').nth(1));
    let fetched =
        pinned.map(|version| root.join(format!("target/tools/nats-server-{version}/nats-server")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    fetched.into_iter().chain(in_path).find(|candidate| candidate.is_file()).unwrap_or_else(|| {
        eprintln!(
            "needs a nats-server and found none: run `scripts/test --fetch-only` once, which fetches it"
        );
        std::process::exit(1)
    })
}
