//! A line of a process's log: an event as the process saw it, and its time.
//!
//! Times are nanoseconds of the system clock, which all processes of a machine share. The process
//! reads the time before it checks the state. A process that is paused in between therefore claims
//! too short a hold, and never too long a one.
//!
//! An event is its name and its parameters:
//!
//! | event | meaning |
//! |---|---|
//! | `asks RESOURCE MODE` | a lock was requested |
//! | `entered RESOURCE MODE TOKEN HELD LENGTH` | it was granted, to be held for that many milliseconds |
//! | `held HELD` | the holder checked its hold |
//! | `writes NUMBER` | a fenced write begins, with its number in the process |
//! | `accepted VERSION`, `rejected NEWEST` | its outcome; a write with the token `NEWEST` came before |
//! | `not-written WHY`, `unknown WHY` | it was not written, or the outcome is unknown |
//! | `downgraded HELD` | the hold continues as a reader's |
//! | `leaving HELD` | the last check before the release |
//! | `released`, `lost WHY` | `release` reported that it was held to the end, or lost |
//! | `let-go HOW` | it was released in another way, or the outcome is unknown |
//! | `not-granted WHY` | because of faults or other processes |
//! | `unexplained WHAT` | no fault explains this error |
//! | `quiet`, `done` | faults are over, and all later requests have to be granted; the last one was |

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// The mode of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    Write,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) at: u64,
    /// Number of the worker within its process.
    pub(crate) worker: u64,
    pub(crate) event: String,
}

impl Line {
    pub(crate) fn words(&self) -> Vec<&str> {
        self.event.split(' ').collect()
    }
}

/// Returns the time of the clock that all processes share.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(since.as_nanos()).expect("a clock before 2554")
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

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text of an error is written on one line.
        write!(f, "{} {} {}", self.at, self.worker, self.event.replace('\n', " "))
    }
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ' ');
        let mut part = || parts.next().ok_or_else(|| format!("{text:?} is cut off"));
        let (at, worker) = (parsed(part()?)?, parsed(part()?)?);
        Ok(Self { at, worker, event: part()?.to_owned() })
    }
}

pub(crate) fn parsed<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} cannot be read"))
}
