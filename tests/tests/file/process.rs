//! A process with a connection of its own, which the tests command, stop and kill.

use std::io::{BufRead, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, LockOptions};
use shizuku_kv::{Atomicity, Connection, Key, Store, StoreConfig, WatchScope, Write, connect};
use shizuku_kv_tests::rerun;

const URL: &str = "SHIZUKU_FILE_URL";

/// Name of the store of all processes.
pub(crate) const STORE: &str = "shared";

/// Mark of a line that is an answer. The test harness prints others.
const MARK: &str = "> ";

/// Lease of the locks of these tests.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// A process with a connection. It is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts a process that connects to this URL. Returns it with its first answer: `ready`, or
    /// the error.
    pub(crate) fn start(url: &str) -> (Self, String) {
        Self::of(rerun(module_path!(), "process_that_obeys"), url)
    }

    /// Starts a process without waiting for its answer.
    pub(crate) fn begin(url: &str) -> Self {
        Self::spawn(rerun(module_path!(), "process_that_obeys"), url)
    }

    /// Starts a process whose files can have at most this number of KiB. The soft limit can be
    /// raised later.
    pub(crate) fn with_limit(url: &str, kib: u32) -> (Self, String) {
        let own = rerun(module_path!(), "process_that_obeys");
        let mut command = Command::new("sh");
        // Ignoring the signal makes a write beyond the limit an error. The unit is 512 bytes.
        let script = format!("trap '' XFSZ; ulimit -S -f {}; exec \"$@\"", kib * 2);
        command.args(["-c", &script, "sh"]).arg(own.get_program()).args(own.get_args());
        Self::of(command, url)
    }

    fn of(command: Command, url: &str) -> (Self, String) {
        let mut process = Self::spawn(command, url);
        let first = process.answer().expect("an answer");
        (process, first)
    }

    fn spawn(mut command: Command, url: &str) -> Self {
        command.env(URL, url).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output }
    }

    /// Starts a process that can connect.
    pub(crate) fn ready(url: &str) -> Self {
        let (process, first) = Self::start(url);
        assert_eq!(first, "ready");
        process
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command.
    pub(crate) fn send(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    /// Returns the next answer. Returns `None` if the process has ended.
    pub(crate) fn answer(&mut self) -> Option<String> {
        loop {
            let line = self.output.next()?.ok()?;
            // The harness prints the name of the test without a line break.
            if let Some((_, answer)) = line.split_once(MARK) {
                return Some(answer.to_owned());
            }
        }
    }

    /// Sends a command, and returns its answer.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.answer().expect("an answer")
    }

    /// Removes the limit on the size of files.
    pub(crate) fn raise_limit(&self) {
        self.limit("unlimited");
    }

    /// Sets the limit on the size of files, in bytes, so that every write beyond it fails.
    pub(crate) fn limit(&self, bytes: &str) {
        let (id, limit) = (self.id().to_string(), format!("--fsize={bytes}"));
        let limited = Command::new("prlimit").args(["--pid", &id, &limit]).status();
        assert!(limited.unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the process, or lets it continue.
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(text: impl std::fmt::Display) {
    println!("{MARK}{text}");
}

#[test]
#[ignore = "the tests of this binary start it as a process of its own; by itself it does nothing"]
fn process_that_obeys() {
    let Ok(url) = std::env::var(URL) else { return };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(obey(&url));
}

async fn obey(url: &str) {
    let connection = match connect(url).await {
        Ok(connection) => connection,
        Err(error) => return say(error),
    };
    let config = StoreConfig::new().key_ttl(true);
    let store = match connection.store_with_config(STORE, config).await {
        Ok(store) => store,
        Err(error) => return say(error),
    };
    say("ready");
    let mut held = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["put", key, value] => match store.put(*key, value.to_string()).await {
                Ok(version) => say(version),
                Err(error) => say(error),
            },
            ["put_for", key, seconds] => {
                let ttl = Duration::from_secs(seconds.parse().unwrap());
                let put = store.ttl().unwrap().put(*key, "short", ttl).await;
                say(put.map_or_else(|error| error.to_string(), |version| version.to_string()));
            }
            ["put_large", key] => match store.put(*key, vec![7; 200_000]).await {
                Ok(version) => say(version),
                Err(error) => say(format!("error {error}")),
            },
            ["get", key] => match store.get(*key).await {
                Ok(Some(entry)) => say(String::from_utf8_lossy(&entry.value)),
                Ok(None) => say("none"),
                Err(error) => say(error),
            },
            ["keys"] => match store.keys(WatchScope::All).try_collect().await {
                Ok(keys) => say(keys.iter().map(|key| key.as_str()).collect::<Vec<_>>().join(" ")),
                Err(error) => say(format!("error {error}")),
            },
            ["write_on", prefix, first] => write_on(&store, prefix, first.parse().unwrap()).await,
            ["watch"] => watch(&store).await,
            ["lock", resource] => {
                let options = LockOptions::new().lease(LEASE).wait(Duration::from_secs(30));
                let lock = DistroRwLock::with_options(&store, *resource, options).unwrap();
                held = Some(lock.write().await.unwrap());
                say(held.as_ref().unwrap().fencing_token());
            }
            ["unlock"] => {
                drop(held.take());
                say("unlocked");
            }
            ["end"] => {
                connection.shutdown().await.unwrap();
                return say("ended");
            }
            _ => say("unknown"),
        }
    }
}

/// Number of tasks of a process that write, so that a commit has several writes.
const TASKS: u64 = 4;

/// Number of keys of each of these tasks, without the pair.
const KEYS: u64 = 16;

/// The keys of the pair of a task, which are written together.
pub(crate) const PAIR: [&str; 2] = ["left", "right"];

/// Returns the value of a write, which differs from that of each other number in every part.
pub(crate) fn content(number: u64) -> String {
    let times = if number.is_multiple_of(50) { 3000 } else { 1 + number % 400 };
    format!("{number} ").repeat(usize::try_from(times).unwrap())
}

/// Writes until the process is killed, and says each key with the number in its value and its
/// version. Tasks begin at this number, so that the numbers of a key grow if those of calls do.
async fn write_on(store: &Store, prefix: &str, first: u64) {
    let tasks = (0..TASKS).map(|task| {
        let (store, prefix) = (store.clone(), format!("{prefix}.{task}"));
        tokio::spawn(async move {
            for number in first.. {
                if number.is_multiple_of(8) {
                    write_pair(&store, &prefix, number).await;
                    continue;
                }
                let key = format!("{prefix}.{}", number % KEYS);
                match store.put(key.as_str(), content(number)).await {
                    Ok(version) => say(format!("{key} {number} {version}")),
                    Err(error) => say(format!("error {error}")),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

async fn write_pair(store: &Store, prefix: &str, number: u64) {
    let keys = PAIR.map(|side| format!("{prefix}.{side}"));
    let writes = keys.iter().map(|key| (Key::new(key.as_str()).unwrap(), content(number)));
    let writes = writes.map(|(key, value)| (key, Write::put(value))).collect();
    let writer = store.backend().writer().unwrap();
    let answers = writer.write_many(writes, Atomicity::All, Duration::from_secs(5)).await;
    for (key, answer) in keys.iter().zip(answers) {
        match answer {
            Ok(version) => say(format!("{key} {number} {version}")),
            Err(error) => say(format!("error {error}")),
        }
    }
}

/// Says each update until the process is killed.
async fn watch(store: &Store) {
    let watch = store.watch(WatchScope::All).await.unwrap();
    while let Some(update) = watch.next().await {
        match update.unwrap().into_entry() {
            Some(entry) => {
                let value = String::from_utf8_lossy(&entry.value).into_owned();
                say(format!("{} {:?} {value}", entry.key, entry.operation));
            }
            None => say("caught up"),
        }
    }
}
