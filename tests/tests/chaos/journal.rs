//! The journal of a process: its actions and their results, until it ends or is killed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::faults::history::{Kind, Outcome};
use crate::faults::log::Content;
use crate::linearizability::history::End;
use crate::linearizability::register::Operation;

/// The time since a run began.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    /// By the clock of this process.
    Own(Instant),
    /// By the clock of the system, which all processes of a machine share.
    Shared(SystemTime),
}

impl Clock {
    pub(crate) fn elapsed(self) -> Duration {
        match self {
            Self::Own(start) => start.elapsed(),
            Self::Shared(start) => start.elapsed().expect("the clock was not set back"),
        }
    }
}

/// An event of a process. A write, a call and a watch have numbers that no other process uses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// A write is about to be sent.
    Begin {
        store: String,
        write: usize,
        key: String,
        kind: Kind,
        at: Duration,
    },
    /// It was answered.
    End {
        store: String,
        write: usize,
        outcome: Outcome,
        at: Duration,
    },
    /// A watch is about to be opened.
    Opened {
        watch: usize,
        at: Duration,
    },
    /// It has delivered an entry, with its version, or the caught-up marker.
    Seen {
        watch: usize,
        at: Duration,
        sight: Option<(String, u64, Content)>,
        cursor: Vec<u8>,
    },
    /// It was dropped. The next one resumes from the last cursor, or starts from the beginning.
    Again {
        watch: usize,
        at: Duration,
        is_afresh: bool,
    },
    /// It has ended, or broken a promise of its own.
    Trouble {
        watch: usize,
        what: String,
    },
    /// A client of a register is about to make a call.
    Call {
        key: String,
        client: usize,
        operation: Operation,
        at: Duration,
    },
    Answer {
        key: String,
        client: usize,
        end: End,
        at: Duration,
    },
    /// The lock with this token was held.
    Held {
        token: u64,
        at: Duration,
    },
    /// An answer that no fault explains.
    Odd(String),
    /// All writers and clients have ended.
    Quiet,
}

/// A journal that is written. Each line is one write to the end of a file, so that a killed process
/// leaves whole lines.
#[derive(Clone, Debug)]
pub(crate) struct Journal(Arc<Mutex<File>>);

impl Journal {
    pub(crate) fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self(Arc::new(Mutex::new(file.expect("a file"))))
    }

    pub(crate) fn note(&self, line: &Line) {
        let mut text = serde_json::to_string(line).expect("it can be encoded");
        text.push('\n');
        self.0.lock().unwrap().write_all(text.as_bytes()).expect("the journal can be written");
    }
}

/// A journal that is read while it grows.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    read: u64,
}

impl Source {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// Returns the lines since the last call. A line without an end is still being written, or is
    /// the last of a killed process.
    pub(crate) fn read_on(&mut self) -> Vec<Line> {
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.read)).expect("a file");
        file.read_to_end(&mut bytes).expect("a file that can be read");
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.read += end as u64;
        let lines = bytes[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).expect("a line of a journal")).collect()
    }
}
