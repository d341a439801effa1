//! Runs one test of this binary in a process of its own.

use std::env::current_exe;
use std::process::{Command, Stdio};

/// Returns a command that runs one test of this binary in a process of its own, ignored or not.
/// `module` is the `module_path!()` of the test. The environment marks the test as a child.
///
/// # Panics
///
/// If the path of this binary is unknown.
pub fn rerun(module: &str, test: &str) -> Command {
    let path = match module.split_once("::") {
        Some((_binary, modules)) => format!("{modules}::{test}"),
        None => test.to_owned(),
    };
    let mut command = Command::new(current_exe().expect("the path of this binary"));
    command
        .args(["--exact", "--include-ignored", &path, "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null());
    command
}
