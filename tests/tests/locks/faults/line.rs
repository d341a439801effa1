//! A line of a process's log: an event as the process saw it, and its time.
//!
//! Times are nanoseconds of the system clock, which all processes of a machine share. The process
//! reads the time before it checks the state. A process that is paused in between therefore claims
//! too short a hold, and never too long a one.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// The mode of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Mode {
    Read,
    Write,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A lock was requested.
    Asks {
        resource: String,
        mode: Mode,
    },
    /// It was granted. The plan is to hold it for this many milliseconds.
    Entered {
        resource: String,
        mode: Mode,
        token: u64,
        held: bool,
        length: u64,
    },
    /// The holder checked its hold. True if it was still held.
    Held(bool),
    /// A fenced write begins, with its number in the process.
    Writes {
        number: u64,
    },
    Accepted {
        version: u64,
    },
    /// A write with this token came before.
    Rejected {
        newest: u64,
    },
    /// It was not written.
    NotWritten(String),
    /// The outcome is unknown.
    Unknown(String),
    /// The hold continues as a reader's.
    Downgraded {
        held: bool,
    },
    /// The last look before the release.
    Leaving(bool),
    /// It was released by `release`, which reported that it was held to the end.
    Released,
    /// `release` reported that it was lost.
    Lost(String),
    /// It was released in another way, or the outcome is unknown.
    LetGo(String),
    /// It was not granted, because of faults or other processes.
    NotGranted(String),
    /// An unexplained error.
    Unexplained(String),
    /// Faults are over, and all later requests have to be granted.
    Quiet,
    /// The worker is done.
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) at: u64,
    /// Number of the worker within its process.
    pub(crate) worker: u64,
    pub(crate) event: Event,
}

/// Returns the time of the clock that all processes share.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(since.as_nanos()).expect("a clock before 2554")
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "read" => Ok(Self::Read),
            "write" => Ok(Self::Write),
            _ => Err(format!("{text:?} is no mode")),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asks { resource, mode } => write!(f, "asks {resource} {mode}"),
            Self::Entered { resource, mode, token, held, length } => {
                write!(f, "entered {resource} {mode} {token} {held} {length}")
            }
            Self::Held(held) => write!(f, "held {held}"),
            Self::Writes { number } => write!(f, "writes {number}"),
            Self::Accepted { version } => write!(f, "accepted {version}"),
            Self::Rejected { newest } => write!(f, "rejected {newest}"),
            Self::NotWritten(why) => write!(f, "not-written {why}"),
            Self::Unknown(why) => write!(f, "unknown {why}"),
            Self::Downgraded { held } => write!(f, "downgraded {held}"),
            Self::Leaving(held) => write!(f, "leaving {held}"),
            Self::Released => write!(f, "released"),
            Self::Lost(why) => write!(f, "lost {why}"),
            Self::LetGo(how) => write!(f, "let-go {how}"),
            Self::NotGranted(why) => write!(f, "not-granted {why}"),
            Self::Unexplained(what) => write!(f, "unexplained {what}"),
            Self::Quiet => write!(f, "quiet"),
            Self::Done => write!(f, "done"),
        }
    }
}

impl FromStr for Event {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut words = rest.split(' ');
        let mut word = || words.next().ok_or_else(|| format!("{text:?} is cut off"));
        Ok(match name {
            "asks" => Self::Asks { resource: word()?.to_owned(), mode: parsed(word()?)? },
            "entered" => Self::Entered {
                resource: word()?.to_owned(),
                mode: parsed(word()?)?,
                token: parsed(word()?)?,
                held: parsed(word()?)?,
                length: parsed(word()?)?,
            },
            "held" => Self::Held(parsed(rest)?),
            "writes" => Self::Writes { number: parsed(rest)? },
            "accepted" => Self::Accepted { version: parsed(rest)? },
            "rejected" => Self::Rejected { newest: parsed(rest)? },
            "not-written" => Self::NotWritten(rest.to_owned()),
            "unknown" => Self::Unknown(rest.to_owned()),
            "downgraded" => Self::Downgraded { held: parsed(rest)? },
            "leaving" => Self::Leaving(parsed(rest)?),
            "released" => Self::Released,
            "lost" => Self::Lost(rest.to_owned()),
            "let-go" => Self::LetGo(rest.to_owned()),
            "not-granted" => Self::NotGranted(rest.to_owned()),
            "unexplained" => Self::Unexplained(rest.to_owned()),
            "quiet" => Self::Quiet,
            "done" => Self::Done,
            _ => return Err(format!("{text:?} is no event")),
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text of an error is written on one line.
        let event = self.event.to_string().replace('\n', " ");
        write!(f, "{} {} {event}", self.at, self.worker)
    }
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ' ');
        let mut part = || parts.next().ok_or_else(|| format!("{text:?} is cut off"));
        Ok(Self { at: parsed(part()?)?, worker: parsed(part()?)?, event: part()?.parse()? })
    }
}

fn parsed<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_decoded_as_encoded() {
        let resource = || "a".to_owned();
        let why = || "its lease was not renewed in time".to_owned();
        let events = [
            Event::Asks { resource: resource(), mode: Mode::Read },
            Event::Entered {
                resource: resource(),
                mode: Mode::Write,
                token: 7,
                held: true,
                length: 300,
            },
            Event::Held(true),
            Event::Writes { number: 2 },
            Event::Accepted { version: 12 },
            Event::Rejected { newest: 9 },
            Event::NotWritten(why()),
            Event::Unknown(why()),
            Event::Downgraded { held: false },
            Event::Leaving(false),
            Event::Released,
            Event::Lost(why()),
            Event::LetGo("dropped".to_owned()),
            Event::NotGranted(why()),
            Event::Unexplained(why()),
            Event::Quiet,
            Event::Done,
        ];
        for event in events {
            let line = Line { at: 123_456_789, worker: 1, event };
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        assert!("12 1 entered a write 7".parse::<Line>().is_err());
        assert!("12 1 sleeps".parse::<Line>().is_err());
    }
}
