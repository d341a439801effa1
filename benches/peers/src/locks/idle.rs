//! The cost of an idle lock for the server: the number of messages that it receives while the lock
//! is held.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shizuku_kv::rw_lock::DistroRwLock;
use tempfile::TempDir;

use super::{Effort, store};
use crate::lines::alone;

/// Time until the holder watches its lock, and all other work after acquiring it is done.
const SETTLING: Duration = Duration::from_secs(3);

pub(super) async fn measure(effort: Effort) -> String {
    let server = Watched::start();
    let (store, _connection) = store(&format!("nats://127.0.0.1:{}", server.port)).await;
    tokio::time::sleep(SETTLING).await;
    let before = server.rate(effort.idle).await;
    let lock = DistroRwLock::new(&store, "idle").unwrap();
    let guard = lock.write().await.unwrap();
    tokio::time::sleep(SETTLING).await;
    let held = server.rate(effort.idle).await;
    guard.release().await.unwrap();
    alone(
        &format!("a held lock with a lease of 10 s, {:.0} s long", effort.idle.as_secs_f64()),
        &format!(
            "{:.2} messages/s and {:.2} writes/s received ({:.2} messages/s without a lock)",
            held.messages, held.writes, before.messages
        ),
    )
}

/// Messages and writes per second.
struct Rate {
    messages: f64,
    /// Messages that a stream stores.
    writes: f64,
}

/// A server of its own with a monitoring port. Only the measured lock uses it.
struct Watched {
    process: Child,
    port: u16,
    monitoring: u16,
    _home: TempDir,
}

impl Watched {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let ports = home.path().join("ports");
        std::fs::create_dir(&ports).unwrap();
        let binary =
            std::env::var_os("NATS_SERVER").expect("benches/peers/run says where nats-server is");
        let process = Command::new(binary)
            .args([
                "--addr",
                "127.0.0.1",
                "--port",
                "-1",
                "--http_port",
                "-1",
                "--jetstream",
                "--store_dir",
            ])
            .arg(home.path().join("store"))
            .arg("--ports_file_dir")
            .arg(&ports)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self { process, port: 0, monitoring: 0, _home: home };
        let deadline = Instant::now() + Duration::from_secs(20);
        while server.port == 0 {
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(5));
            let Some(Ok(file)) = std::fs::read_dir(&ports).unwrap().next() else { continue };
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            if let (Some(port), Some(monitoring)) = (port(&text, "nats"), port(&text, "monitoring"))
            {
                (server.port, server.monitoring) = (port, monitoring);
            }
        }
        server
    }

    async fn rate(&self, length: Duration) -> Rate {
        let (start, messages, writes) = (Instant::now(), self.messages(), self.writes());
        tokio::time::sleep(length).await;
        let seconds = start.elapsed().as_secs_f64();
        Rate {
            messages: (self.messages() - messages) as f64 / seconds,
            writes: (self.writes() - writes) as f64 / seconds,
        }
    }

    /// Returns the number of messages that clients have sent.
    fn messages(&self) -> u64 {
        number(&self.page("/varz"), "in_msgs")
    }

    /// Returns the newest sequence of the only stream.
    fn writes(&self) -> u64 {
        number(&self.page("/jsz?streams=true"), "last_seq")
    }

    fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.monitoring)).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the port in the server's ports file:
/// `{"nats":["nats://127.0.0.1:4222"],"monitoring":[…]}`.
fn port(text: &str, kind: &str) -> Option<u16> {
    let (_, after) = text.split_once(&format!("\"{kind}\":[\""))?;
    after.split_once('"')?.0.rsplit(':').next()?.parse().ok()
}

fn number(page: &str, field: &str) -> u64 {
    let after = page.split_once(&format!("\"{field}\": ")).map(|(_, after)| after);
    let digits = after.and_then(|after| after.split(|other: char| !other.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no {field} in {page}"))
}
