//! A process that acquires locks, as the test that started it sees it.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use shizuku_kv_tests::rerun;

use crate::faults::child;

/// The process, which does not outlive the test.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) number: u64,
    child: Child,
    pub(crate) is_stopped: bool,
}

impl Process {
    /// Starts it: this test binary, with the test for the child process.
    pub(crate) fn start(url: &str, bucket: &str, log: &Path, number: u64, seed: u64) -> Self {
        let log = log.to_str().expect("a path");
        let plan = [url, bucket, log, &number.to_string(), &seed.to_string()].join("\n");
        let child = rerun(child::MODULE, "a_process_that_wants_locks")
            .env(child::PLAN, plan)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self { number, child: child.expect("it can be started"), is_stopped: false }
    }

    /// Kills it, as a crash would.
    pub(crate) fn crash(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it at any point, with its connections open.
    pub(crate) fn stop(&mut self) {
        self.signal("STOP");
        self.is_stopped = true;
    }

    /// Resumes it.
    pub(crate) fn go_on(&mut self) {
        self.signal("CONT");
        self.is_stopped = false;
    }

    /// Tells it that faults are over.
    pub(crate) fn tell_of_quiet(&mut self) {
        let input = self.child.stdin.as_mut().expect("it is piped");
        // If it has ended on its own, waiting for it finds that out.
        let _ = input.write_all(b"quiet\n").and_then(|()| input.flush());
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &self.child.id().to_string()])
            .status()
            .expect("`sh` runs");
        assert!(status.success(), "cannot send SIG{name} to process {}", self.number);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.crash();
    }
}
