//! A `nats-server` process for one test, or for all tests of a binary.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::NatsServerBuilder;
use crate::api;
use crate::binary;
use crate::monitor;
use crate::supervisor::Supervised;
use crate::wait::{PATIENCE, poll};

/// A real `nats-server` on a loopback port, with its storage in a temporary directory.
///
/// The process is killed and its files are removed when this is dropped. This also happens when the
/// test process ends in any other way, for example by SIGKILL.
///
/// Methods that change the server take `&mut self`, so that no test can kill the
/// [shared](Self::shared) one. All methods block; a start takes about ten milliseconds.
#[derive(Debug)]
pub struct NatsServer {
    // Dropped in this order: the process ends before its files are removed.
    process: Option<Supervised>,
    home: TempDir,
    options: NatsServerBuilder,
    binary: PathBuf,
    pid: u32,
    ports: Ports,
    paused: bool,
    version: String,
    /// URL that clients use instead.
    stand_in: Option<String>,
}

/// Environment variable with a URL that stands in for that of the [shared](NatsServer::shared)
/// server, so that its tests run on another backend.
pub const STAND_IN: &str = "SHIZUKU_SHARED_URL";

/// The ports of a server, or 0 for an unknown one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ports {
    /// Port for clients, the same after a restart.
    pub(crate) client: u16,
    /// Port for the other servers of a cluster, the same after a restart.
    pub(crate) routes: u16,
    /// Port for monitoring, another one after each start.
    pub(crate) monitoring: u16,
}

impl NatsServer {
    /// Starts a server with JetStream, without TLS and authentication.
    ///
    /// # Panics
    ///
    /// As [`NatsServerBuilder::start`] does.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Returns a builder for a server with other settings.
    pub fn builder() -> NatsServerBuilder {
        NatsServerBuilder::new()
    }

    /// Returns the server that all tests of this process share. The first call starts it as
    /// [`start`](Self::start) does, and it ends with the process. Use [`unique`](crate::unique)
    /// names on it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<NatsServer> = OnceLock::new();
        SHARED.get_or_init(|| {
            let mut server = Self::start();
            server.stand_in = std::env::var(STAND_IN).ok();
            server
        })
    }

    pub(crate) fn start_with(options: NatsServerBuilder) -> Self {
        let home = tempfile::Builder::new()
            .prefix("shizuku-kv-nats-")
            .tempdir()
            .expect("a temporary directory");
        let mut server = Self {
            process: None,
            home,
            binary: binary::nats_server(),
            pid: 0,
            ports: Ports { client: options.fixed_port().unwrap_or(0), ..Ports::default() },
            paused: false,
            version: String::new(),
            stand_in: None,
            options,
        };
        server.run();
        server
    }

    /// Returns the URL for clients: `nats://127.0.0.1:PORT`, or `tls://…` with TLS.
    pub fn url(&self) -> String {
        self.url_with("")
    }

    /// Returns the URL with userinfo: `url_as("name:password")`, `url_as("token")`. The userinfo is
    /// inserted unchanged; percent-encode it if necessary.
    pub fn url_as(&self, userinfo: &str) -> String {
        self.url_with(&format!("{userinfo}@"))
    }

    fn url_with(&self, userinfo: &str) -> String {
        if let Some(url) = &self.stand_in {
            return url.clone();
        }
        let scheme = if self.options.has_tls() { "tls" } else { "nats" };
        format!("{scheme}://{userinfo}127.0.0.1:{}", self.ports.client)
    }

    /// Returns the port, the same after a restart.
    pub fn port(&self) -> u16 {
        self.ports.client
    }

    pub(crate) fn ports(&self) -> Ports {
        self.ports
    }

    /// Returns the process id of the server, or of the last one while it is killed.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the version that the server reports, such as `2.15.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns true if the server's version is `major.minor` or newer.
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.version.split('.').map(|part| {
            part.parse::<u32>().unwrap_or_else(|_| panic!("{:?} is no version", self.version))
        });
        (parts.next(), parts.next()) >= (Some(major), Some(minor))
    }

    /// Returns the directory of all files of the server. It is removed after the server has ended.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Returns the directory of JetStream's files, also while the server is killed.
    pub fn store_dir(&self) -> PathBuf {
        self.home.path().join("jetstream")
    }

    /// Returns the logs of all server processes of this value.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns a plain client of this server, for observations from outside the library.
    ///
    /// # Panics
    ///
    /// If it cannot connect. A server with TLS or authentication needs a client made by hand.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("connect to the test's server")
    }

    /// Returns the number of connected clients, this harness's own included. Routes of a cluster do
    /// not count.
    ///
    /// # Panics
    ///
    /// If the server does not answer, as a killed or paused one.
    pub async fn connections(&self) -> usize {
        monitor::connections(self.ports.monitoring).await
    }

    /// Returns the names of the consumers that the server has for a bucket.
    ///
    /// # Panics
    ///
    /// If the bucket does not exist, or as [`client`](Self::client) does.
    pub async fn consumers(&self, bucket: &str) -> Vec<String> {
        api::consumers(&self.client().await, bucket).await.unwrap_or_else(|why| panic!("{why}"))
    }

    /// Returns a page of the server's monitoring, such as `/jsz?consumers=true`. Returns `None` if
    /// it does not answer within [`PATIENCE`].
    pub async fn page(&self, path: &str) -> Option<Value> {
        monitor::page_when_ready(self.ports.monitoring, path).await
    }

    /// Returns true if the server has been started, and was neither killed here nor ended by
    /// itself.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| !process.has_ended())
    }

    /// Kills the server with SIGKILL and returns when it is gone. Its files stay.
    pub fn kill(&mut self) {
        self.process = None;
        self.paused = false;
    }

    /// Kills the server if it runs, and starts it again on the same port and storage.
    ///
    /// # Panics
    ///
    /// As [`NatsServerBuilder::start`] does.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// Restarts the server with another configuration, like an operator while clients are
    /// connected.
    ///
    /// # Panics
    ///
    /// As [`NatsServerBuilder::start`] does.
    pub fn restart_with(&mut self, change: impl FnOnce(NatsServerBuilder) -> NatsServerBuilder) {
        self.kill();
        self.options = change(self.options.clone());
        self.run();
    }

    /// Stops the process with SIGSTOP and returns when it has stopped. Connections stay open, the
    /// kernel accepts new ones, and no request is answered.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn pause(&mut self) {
        self.running().signal("STOP");
        let tasks = PathBuf::from(format!("/proc/{}/task", self.pid));
        poll(Instant::now() + PATIENCE, || all_stopped(&tasks).then_some(()))
            .unwrap_or_else(|| panic!("the server has not stopped within {PATIENCE:?}"));
        self.paused = true;
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Resumes a [paused](Self::pause) server.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn resume(&mut self) {
        self.running().signal("CONT");
        self.paused = false;
    }

    /// Replaces the text that [`NatsServerBuilder::config`] has appended by `config`, and makes the
    /// running server reload it (SIGHUP). Returns when the server has reloaded it.
    ///
    /// # Panics
    ///
    /// If the server does not run, or rejects the configuration.
    pub fn reload(&mut self, config: &str) {
        self.options = self.options.clone().only_config(config);
        let home = self.home.path();
        let text = self.options.render(self.ports, &self.store_dir(), &home.join("ports"));
        std::fs::write(home.join("server.conf"), text).expect("write the server's configuration");
        let reloads = |log: &str| log.matches("Reloaded server configuration").count();
        let (log, before) = (self.log(), reloads(&self.log()));
        self.running().signal("HUP");
        let done = poll(Instant::now() + PATIENCE, || {
            let now = self.log();
            let is_refused = now[log.len()..].contains("Failed to reload");
            (is_refused || reloads(&now) > before).then_some(!is_refused)
        });
        assert_eq!(
            done,
            Some(true),
            "the server has not reloaded its configuration:\n{}",
            self.log()
        );
    }

    fn running(&self) -> &Supervised {
        self.process.as_ref().expect("the server was killed; `restart` starts it again")
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    fn run(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // If the port is given, another process may hold it for a moment.
        while !self.try_run(deadline) {}
    }

    /// Starts the process and waits until it is ready. Returns `false` if its port is in use and
    /// time is left.
    fn try_run(&mut self, deadline: Instant) -> bool {
        let home = self.home.path();
        let ports_dir = home.join("ports");
        let config = home.join("server.conf");
        // A killed server leaves its ports file behind.
        let _ = std::fs::remove_dir_all(&ports_dir);
        std::fs::create_dir(&ports_dir).expect("create a directory for the server's ports file");
        let text = self.options.render(self.ports, &self.store_dir(), &ports_dir);
        std::fs::write(&config, text).expect("write the server's configuration");

        let logged_before = self.log().len();
        let mut process = Supervised::spawn(home, &self.binary, &config);
        let ready = poll(deadline, || {
            let ready = listening_ports(&ports_dir, self.options.is_clustered())
                .and_then(|ports| Some((ports, greeting(ports.client)?)))
                .filter(|(_, info)| {
                    !self.options.has_jetstream() || info.contains("\"jetstream\":true")
                });
            match ready {
                None if process.has_ended() => Some(None),
                None => None,
                ready => Some(ready),
            }
        });
        match ready {
            Some(Some((ports, info))) => {
                self.ports = ports;
                self.pid = process.pid();
                self.version = version_in(&info);
                self.process = Some(process);
                true
            }
            Some(None) => {
                let port_taken = self.log()[logged_before..].contains("address already in use");
                if !port_taken || Instant::now() >= deadline {
                    self.fail("ended before it was ready");
                }
                false
            }
            None => self.fail(&format!("was not ready within {PATIENCE:?}")),
        }
    }

    fn fail(&self, why: &str) -> ! {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        panic!("{} {why}. The end of its log:\n{tail}", self.binary.display())
    }
}

/// Returns the ports in the file that the server writes once it listens:
/// `{"nats":["nats://127.0.0.1:4222"],"monitoring":["http://127.0.0.1:8222"],"cluster":["nats://127.0.0.1:6222"]}`.
fn listening_ports(ports_dir: &Path, clustered: bool) -> Option<Ports> {
    let file = std::fs::read_dir(ports_dir).ok()?.next()?.ok()?;
    let text = std::fs::read_to_string(file.path()).ok()?;
    let port = |kind: &str| -> Option<u16> {
        let (_, after) = text.split_once(&format!("\"{kind}\":[\""))?;
        let (url, _) = after.split_once('"')?;
        url.rsplit(':').next()?.parse().ok()
    };
    let routes = if clustered { port("cluster")? } else { 0 };
    Some(Ports { client: port("nats")?, routes, monitoring: port("monitoring")? })
}

/// Returns the `INFO` line with which a server greets every connection.
fn greeting(port: u16) -> Option<String> {
    let brief = Duration::from_secs(1);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect_timeout(&address, brief).ok()?;
    stream.set_read_timeout(Some(brief)).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    (line.starts_with("INFO ") && line.ends_with('\n')).then_some(line)
}

fn version_in(info: &str) -> String {
    info.split_once("\"version\":\"")
        .and_then(|(_, after)| after.split_once('"'))
        .map(|(version, _)| version.to_owned())
        .unwrap_or_else(|| panic!("the server greets without its version: {info}"))
}

/// Returns true if every thread of a process is stopped, as far as the system can tell. A signal is
/// delivered some time after it was sent.
fn all_stopped(tasks: &Path) -> bool {
    let Ok(tasks) = std::fs::read_dir(tasks) else {
        return !Path::new("/proc/self/task").exists();
    };
    tasks.flatten().all(|task| {
        std::fs::read_to_string(task.path().join("stat"))
            .ok()
            .and_then(|stat| {
                let (_, after_name) = stat.rsplit_once(')')?;
                Some(after_name.trim_start().starts_with('T'))
            })
            .unwrap_or(true)
    })
}
