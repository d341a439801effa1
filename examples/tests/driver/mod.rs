//! Runs the example's processes, asks them, and ends them.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use shizuku_kv::URL_VARIABLE;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command has printed, and whether it ended well.
pub(crate) struct Done(Output);

impl Done {
    /// What it printed, where it ended well and had nothing to complain of.
    #[track_caller]
    pub(crate) fn printed(self) -> String {
        assert!(self.0.status.success() && self.0.stderr.is_empty(), "{:?}", self.0);
        String::from_utf8(self.0.stdout).unwrap().trim_end().to_owned()
    }

    /// The version that it says it has written.
    #[track_caller]
    pub(crate) fn version(self) -> String {
        let printed = self.printed();
        printed.strip_prefix("version ").unwrap_or_else(|| panic!("{printed}")).to_owned()
    }

    /// What it complained of, where it failed and printed nothing else.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert!(self.0.status.code() == Some(1) && self.0.stdout.is_empty(), "{:?}", self.0);
        String::from_utf8(self.0.stderr).unwrap().trim_end().to_owned()
    }
}

/// Runs a command to its end.
pub(crate) fn run(url: &str, store: &str, words: &[&str]) -> Done {
    Done(Running::start(command(url).args(["--store", store]).args(words)).output())
}

/// Runs the demonstration to its end.
pub(crate) fn demonstrate(url: &str) -> Done {
    Done(Running::start(&mut command(url)).output())
}

fn command(url: &str) -> Command {
    let mut command = Command::new(example());
    command.env(URL_VARIABLE, url).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The example's binary, which `cargo test` has built beside this test.
fn example() -> PathBuf {
    const HOW: &str = "build it with `cargo build -p shizuku-kv-examples --examples`";
    let test = std::env::current_exe().unwrap();
    let example = test.ancestors().nth(2).unwrap().join("examples/live_config");
    let changed = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
    let built = changed(&example).unwrap_or_else(|error| panic!("the example is not built: {error}; {HOW}"));
    // `cargo test --tests` builds no examples: what is there may be of yesterday. Cargo lists what it was made of.
    let sources = fs::read_to_string(example.with_extension("d")).unwrap();
    // A path with a space in it is none here.
    for source in sources.split_whitespace().filter(|source| source.ends_with(".rs")).map(Path::new) {
        let is_newer = changed(source).is_ok_and(|changed| changed > built);
        assert!(!is_newer, "the example is older than {}; {HOW}", source.display());
    }
    example
}

/// A process that does not outlive the test, however that ends.
struct Running {
    child: Child,
    guard: Child,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let child = command.spawn().expect("the example runs");
        // Its input closes when this process ends, be it by SIGKILL.
        let guard = Command::new("sh")
            .args(["-c", "read -r _; kill -KILL \"$0\"", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal is for the tests; the process follows when they end.
            .process_group(0)
            .spawn()
            .expect("`sh` runs");
        Self { child, guard }
    }

    /// What it has printed when it has ended.
    fn output(mut self) -> Output {
        let (mut stdout, mut stderr) = (self.child.stdout.take().unwrap(), self.child.stderr.take().unwrap());
        let complaints = thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes)
        });
        let printed = thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let status = self.ended();
        let (stdout, stderr) = (printed.join().unwrap().unwrap(), complaints.join().unwrap().unwrap());
        Output { status, stdout, stderr }
    }

    /// Waits until it has ended by itself.
    fn ended(&mut self) -> ExitStatus {
        until("the process has ended", || self.child.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Before the process id can be somebody else's.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `live_config serve`, as a child.
pub(crate) struct Service {
    process: Running,
    address: String,
    printed: Arc<Mutex<String>>,
}

impl Service {
    /// Starts it on a port that is free, and reads where that is.
    pub(crate) fn start(url: &str, store: &str) -> Self {
        let listen = ["--listen", "127.0.0.1:0"];
        // What it complains of is for whoever reads the output of the test.
        let mut serve = command(url);
        serve.args(["serve", "--store", store]).args(listen).stderr(Stdio::inherit());
        let mut process = Running::start(&mut serve);
        let lines = BufReader::new(process.child.stdout.take().unwrap()).lines();
        let printed = Arc::new(Mutex::new(String::new()));
        thread::spawn({
            let printed = Arc::clone(&printed);
            move || {
                for line in lines.map_while(Result::ok) {
                    writeln!(printed.lock().unwrap(), "{line}").unwrap();
                }
            }
        });
        let first = || printed.lock().unwrap().lines().next().map(str::to_owned);
        let first = until("the service says where it listens", first);
        let address = first.strip_prefix("listening on http://").expect("an address").to_owned();
        Self { process, address, printed }
    }

    /// The body of an answer that is 200.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> String {
        let (status, body) = get(&self.address, path);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    #[track_caller]
    pub(crate) fn get_json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path)).unwrap()
    }

    /// The answer as soon as it is as it should be.
    #[track_caller]
    pub(crate) fn until(&self, path: &str, is_there: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            last = self.get_json(path);
            if is_there(&last) {
                return last;
            }
            thread::sleep(POLL);
        }
        panic!("{path} is still {last}; printed:\n{}", self.printed.lock().unwrap());
    }

    /// Waits until it has printed this, and a line break.
    #[track_caller]
    pub(crate) fn until_printed(&self, text: &str) {
        until(text, || self.printed.lock().unwrap().contains(text).then_some(()));
    }

    /// Asks for `many` jobs at the same time, again until the answers are as they should be.
    #[track_caller]
    pub(crate) fn until_jobs(&self, many: usize, is_there: impl Fn(&[u16]) -> bool) {
        until("the jobs are answered so", || {
            let answers: Vec<u16> = thread::scope(|scope| {
                let jobs: Vec<_> = (0..many).map(|_| scope.spawn(|| get(&self.address, "/job").0)).collect();
                jobs.into_iter().map(|job| job.join().unwrap()).collect()
            });
            is_there(&answers).then_some(())
        });
    }

    /// Ends it with SIGTERM, and returns all that it has printed.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> String {
        let pid = self.process.child.id().to_string();
        assert!(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().unwrap().success());
        let status = self.process.ended();
        assert!(status.success(), "{status}");
        self.until_printed("stopped\n");
        self.printed.lock().unwrap().trim_end().to_owned()
    }
}

/// The status and the body of an answer.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the service listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{path}: {head}")), body.to_owned())
}

const POLL: Duration = Duration::from_millis(5);

/// Asks until there is an answer.
#[track_caller]
fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "not so within {PATIENCE:?}: {what}");
        thread::sleep(POLL);
    }
}
