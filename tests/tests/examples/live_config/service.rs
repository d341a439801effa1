//! `live_config serve` as a child, and its answers over HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use serde_json::Value;

use crate::driver::{Example, PATIENCE, POLL, Process, until};

pub(crate) struct Service {
    process: Process,
    address: String,
}

impl Service {
    /// Starts it on a free port, and reads its address.
    pub(crate) fn start(example: &Example) -> Self {
        let process = example.start(&["serve", "--listen", "127.0.0.1:0"]);
        let first = process.first_line();
        let address = first.strip_prefix("listening on http://").expect("an address").to_owned();
        Self { process, address }
    }

    /// Returns the body of an answer with status 200.
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

    /// Returns the answer as soon as it is as expected.
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
        panic!("{path} is still {last}; printed:\n{}", self.process.printed());
    }

    /// Waits until its output contains this text.
    #[track_caller]
    pub(crate) fn until_printed(&self, text: &str) {
        self.process.until_printed(text);
    }

    /// Requests `many` jobs at the same time, and repeats until the answers are as expected.
    #[track_caller]
    pub(crate) fn until_jobs(&self, many: usize, is_there: impl Fn(&[u16]) -> bool) {
        until("the jobs are answered so", || {
            let answers: Vec<u16> = thread::scope(|scope| {
                let jobs: Vec<_> =
                    (0..many).map(|_| scope.spawn(|| get(&self.address, "/job").0)).collect();
                jobs.into_iter().map(|job| job.join().unwrap()).collect()
            });
            is_there(&answers).then_some(())
        });
    }

    /// Ends it with SIGTERM, and returns its output.
    #[track_caller]
    pub(crate) fn terminate(self) -> String {
        self.process.terminate("stopped")
    }
}

/// Returns the status and the body of an answer.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the service listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) =
        answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{path}: {head}")), body.to_owned())
}
