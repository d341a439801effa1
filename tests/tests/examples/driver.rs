//! Runs the processes of examples, reads their output, and ends them.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use shizuku_kv::{Connection, URL_VARIABLE, connect};
use shizuku_kv_tests::NatsServer;

/// Part of every bad value in these tests. No output may contain it.
pub(crate) const SECRET: &str = "hunter2";

/// Timeout for all waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The output of a command, and its exit status.
pub(crate) struct Done(Output);

impl Done {
    /// Returns the output of a command that succeeded without an error message.
    #[track_caller]
    pub(crate) fn printed(self) -> String {
        assert!(self.0.status.success() && self.0.stderr.is_empty(), "{:?}", self.0);
        String::from_utf8(self.0.stdout).unwrap().trim_end().to_owned()
    }

    /// Returns the version that it reports as written.
    #[track_caller]
    pub(crate) fn version(self) -> String {
        let printed = self.printed();
        printed.strip_prefix("version ").unwrap_or_else(|| panic!("{printed}")).to_owned()
    }

    /// Returns the error message of a command that failed without other output.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert!(self.0.status.code() == Some(1) && self.0.stdout.is_empty(), "{:?}", self.0);
        String::from_utf8(self.0.stderr).unwrap().trim_end().to_owned()
    }
}

/// An example on one store.
pub(crate) struct Example {
    name: &'static str,
    url: String,
    store: String,
}

impl Example {
    pub(crate) fn new(name: &'static str, url: &str, store: &str) -> Self {
        Self { name, url: url.to_owned(), store: store.to_owned() }
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Done {
        Done(Running::start(&mut self.command(words)).output())
    }

    /// Starts a command that does not end on its own.
    pub(crate) fn start(&self, words: &[&str]) -> Process {
        Process::start(&mut self.command(words))
    }

    /// Asserts that these mistakes are reported on stderr, with an exit code: wrong usage, others
    /// with their messages, and an invalid URL of a valid command, which is not repeated.
    #[track_caller]
    pub(crate) fn assert_mistakes(
        &self,
        usage: &[&[&str]],
        others: &[(&[&str], &str)],
        valid: &[&str],
    ) {
        let name = self.name;
        for words in usage {
            let refused = self.run(words).refused();
            assert!(refused.starts_with(&format!("{name}: usage: ")), "{words:?}: {refused}");
        }
        for (words, message) in others {
            assert_eq!(self.run(words).refused(), format!("{name}: {message}"), "{words:?}");
        }
        let refused = Self::new(name, SECRET, "any").run(valid).refused();
        assert!(refused.contains("no scheme") && !refused.contains(SECRET), "{refused}");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = command(self.name, &self.url);
        command.args(["--store", &self.store]).args(words);
        command
    }
}

/// Runs an example's demonstration to its end.
pub(crate) fn demonstrate(name: &str, url: &str) -> Done {
    Done(Running::start(&mut command(name, url)).output())
}

/// Asserts that a demonstration prints this after its first line, on every backend, and leaves no
/// store behind.
pub(crate) async fn assert_story(name: &str, story: &str) {
    let server = NatsServer::start();
    for url in ["memory:", &server.url()] {
        let printed = demonstrate(name, url).printed();
        let (opened, printed) = printed.split_once('\n').unwrap();
        let store = name.replace('_', "-");
        assert!(opened.starts_with(&format!("open    store {store}-")), "{opened}");
        assert_eq!(printed, story, "{url}");
    }
    let stores = connect(&server.url()).await.unwrap().list_stores().try_collect().await.unwrap();
    assert!(stores.is_empty(), "{stores:?}");
}

fn command(name: &str, url: &str) -> Command {
    let mut command = Command::new(binary(name));
    command
        .env(URL_VARIABLE, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Returns the path of the example's binary. Cargo puts it beside the tests, and `cargo test`
/// without a selection of targets builds it.
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let how = match profile.file_name().and_then(OsStr::to_str) {
        Some("release") => "cargo build --workspace --all-features --examples --release",
        _ => "cargo build --workspace --all-features --examples",
    };
    let example = profile.join("examples").join(name);
    let changed = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
    let built = changed(&example).unwrap_or_else(|error| {
        panic!(
            "the example {name} is not built: {}: {error}. Build it with `{how}`",
            example.display()
        )
    });
    // If only some targets are tested, the binary may be out of date. Cargo lists its sources.
    let sources = fs::read_to_string(example.with_extension("d")).unwrap();
    // A path with a space is not supported here.
    for source in sources.split_whitespace().filter(|source| source.ends_with(".rs")).map(Path::new)
    {
        let is_newer = changed(source).is_ok_and(|changed| changed > built);
        assert!(
            !is_newer,
            "the example {name} is older than {}. Build it with `{how}`",
            source.display()
        );
    }
    example
}

/// A process that does not outlive the test, however the test ends.
struct Running {
    child: Child,
    guard: Child,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let child = command.spawn().expect("the example runs");
        // Its input closes when this process ends, even by SIGKILL.
        let guard = Command::new("sh")
            .args(["-c", "read -r _; kill -KILL \"$0\"", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal must reach only the tests. The process ends after them.
            .process_group(0)
            .spawn()
            .expect("`sh` runs");
        Self { child, guard }
    }

    /// Returns its output after it has ended.
    fn output(mut self) -> Output {
        let (mut stdout, mut stderr) =
            (self.child.stdout.take().unwrap(), self.child.stderr.take().unwrap());
        let complaints = thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes)
        });
        let printed = thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let status = self.ended();
        let (stdout, stderr) =
            (printed.join().unwrap().unwrap(), complaints.join().unwrap().unwrap());
        Output { status, stdout, stderr }
    }

    /// Waits until it has ended on its own.
    fn ended(&mut self) -> ExitStatus {
        until("the process has ended", || self.child.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ends the guard before another process can reuse the process id.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command of an example as a child, with its output.
pub(crate) struct Process {
    running: Running,
    printed: Arc<Mutex<String>>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        // Its error messages appear in the output of the test.
        let mut running = Running::start(command.stderr(Stdio::inherit()));
        let lines = BufReader::new(running.child.stdout.take().unwrap()).lines();
        let printed = Arc::new(Mutex::new(String::new()));
        thread::spawn({
            let printed = Arc::clone(&printed);
            move || {
                for line in lines.map_while(Result::ok) {
                    writeln!(printed.lock().unwrap(), "{line}").unwrap();
                }
            }
        });
        Self { running, printed }
    }

    /// Returns the first line of its output.
    #[track_caller]
    pub(crate) fn first_line(&self) -> String {
        until("it prints a line", || self.printed.lock().unwrap().lines().next().map(str::to_owned))
    }

    /// Returns its output so far.
    pub(crate) fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// Waits until its output contains this text.
    #[track_caller]
    pub(crate) fn until_printed(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.printed.lock().unwrap().contains(text) {
            assert!(
                Instant::now() < deadline,
                "no {text:?} within {PATIENCE:?} in:\n{}",
                self.printed()
            );
            thread::sleep(POLL);
        }
    }

    /// Ends it with SIGKILL, without a notification.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Waits until it has failed on its own. Its error message is in the output of the test.
    #[track_caller]
    pub(crate) fn failed(mut self) {
        let status = self.running.ended();
        assert_eq!(status.code(), Some(1), "{status}, after:\n{}", self.printed());
    }

    /// Ends it with SIGTERM, which must end it with success, and waits for its last line.
    #[track_caller]
    pub(crate) fn terminate(mut self, last: &str) -> String {
        self.told_to_end();
        self.until_printed(&format!("{last}\n"));
        self.printed().trim_end().to_owned()
    }

    #[track_caller]
    fn told_to_end(&mut self) {
        let pid = self.running.child.id().to_string();
        assert!(
            Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().unwrap().success()
        );
        let status = self.running.ended();
        assert!(status.success(), "{status}");
    }
}

pub(crate) const POLL: Duration = Duration::from_millis(5);

/// Calls `attempt` until it returns a value.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "not so within {PATIENCE:?}: {what}");
        thread::sleep(POLL);
    }
}
