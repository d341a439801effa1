//! A server process that cannot outlive this one.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const SCRIPT: &str = include_str!("supervisor.sh");

/// A running server, owned through the shell script that kills it when our end of a pipe closes.
///
/// Statics are never dropped and a killed process drops nothing, but the pipe closes in any case.
#[derive(Debug)]
pub(crate) struct Supervised {
    supervisor: Child,
    pid: u32,
}

impl Supervised {
    /// Starts `server --config FILE` with its output appended to `server.log` in `home`.
    pub(crate) fn spawn(home: &Path, server: &Path, config: &Path) -> Self {
        let mut supervisor = Command::new("sh")
            .args(["-c", SCRIPT, "supervisor"])
            .arg(home)
            .arg(server)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal must reach only the tests. The server ends after them.
            .process_group(0)
            .spawn()
            .expect("`sh` runs");
        let mut pid = String::new();
        BufReader::new(supervisor.stdout.take().expect("stdout is piped"))
            .read_line(&mut pid)
            .expect("the supervisor prints the server's process id");
        let pid = pid
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("the supervisor printed {pid:?}, not a process id"));
        Self { supervisor, pid }
    }

    /// Returns the process id of the server itself.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns true if the server has ended without having been killed here.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.supervisor.try_wait().expect("a child can be waited for").is_some()
    }

    /// Sends the server a signal such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &self.pid.to_string()])
            .status()
            .expect("`sh` runs");
        assert!(status.success(), "cannot send SIG{name} to the server, process {}", self.pid);
    }
}

impl Drop for Supervised {
    /// Kills the server and returns when it has ended.
    fn drop(&mut self) {
        use std::io::Write;
        if let Some(mut stdin) = self.supervisor.stdin.take() {
            // Fails only if the server, and so the supervisor, has ended by itself.
            let _ = stdin.write_all(b"kill\n");
        }
        let _ = self.supervisor.wait();
    }
}
