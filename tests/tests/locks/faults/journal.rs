//! The logs of all processes, as they grow.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use crate::logs::line::Line;

/// The log of one process, as far as it has been read.
#[derive(Debug)]
struct Log {
    process: u64,
    path: PathBuf,
    read: u64,
    lines: Vec<Line>,
}

#[derive(Debug, Default)]
pub(crate) struct Journal(Vec<Log>);

impl Journal {
    /// Follows the log of another process.
    pub(crate) fn follow(&mut self, process: u64, path: PathBuf) {
        self.0.push(Log { process, path, read: 0, lines: Vec::new() });
    }

    /// Reads further. A line without an end is still being written, or is the last of a process
    /// that was killed while writing it.
    pub(crate) fn read_on(&mut self) {
        for log in &mut self.0 {
            let Ok(mut file) = File::open(&log.path) else { continue };
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(log.read)).expect("a file");
            file.read_to_end(&mut bytes).expect("a file that can be read");
            let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            log.read += end as u64;
            let text = std::str::from_utf8(&bytes[..end]).expect("text");
            let line = |text: &str| {
                text.parse()
                    .unwrap_or_else(|why| panic!("process {} wrote {text:?}: {why}", log.process))
            };
            log.lines.extend(text.lines().map(line));
        }
    }

    /// Returns the number of granted locks.
    pub(crate) fn grants(&self) -> usize {
        let is_grant = |line: &&Line| line.event.starts_with("entered ");
        self.0.iter().map(|log| log.lines.iter().filter(is_grant).count()).sum()
    }

    /// Returns the last line of each worker of a process.
    pub(crate) fn last(&self, process: u64) -> Vec<&Line> {
        let Some(log) = self.0.iter().find(|log| log.process == process) else { return Vec::new() };
        let mut last = std::collections::BTreeMap::new();
        for line in &log.lines {
            last.insert(line.worker, line);
        }
        last.into_values().collect()
    }

    /// Returns true if a process is in a long section as a writer.
    pub(crate) fn writes_for_a_while(&self, process: u64) -> bool {
        let Some(log) = self.0.iter().find(|log| log.process == process) else { return false };
        self.last(process).into_iter().filter(|line| line.event == "held true").any(|last| {
            let lines = log.lines.iter().rev().filter(|line| line.worker == last.worker);
            let entered = lines.map(Line::words).find(|words| words[0] == "entered");
            let is_long = |length: &str| length.parse().is_ok_and(|length: u64| length >= 300);
            entered.is_some_and(|words| words[2] == "write" && is_long(words[5]))
        })
    }

    /// Returns all lines, by process.
    pub(crate) fn into_lines(mut self) -> Vec<(u64, Vec<Line>)> {
        self.read_on();
        self.0.into_iter().map(|log| (log.process, log.lines)).collect()
    }
}
