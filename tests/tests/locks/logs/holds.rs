//! The holds and fenced writes of the logs, with their times.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::logs::line::{Line, Mode, parsed};

/// A part of a grant in which its holder reported that it held: from the first time to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) process: u64,
    pub(crate) worker: u64,
    pub(crate) resource: String,
    pub(crate) mode: Mode,
    pub(crate) token: u64,
    pub(crate) from: u64,
    pub(crate) until: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) process: u64,
    pub(crate) resource: String,
    pub(crate) mode: Mode,
    pub(crate) token: u64,
    pub(crate) at: u64,
    /// Duration of the wait.
    pub(crate) waited: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted(u64),
    Rejected(u64),
    NotWritten,
    Unknown,
}

/// A fenced write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) process: u64,
    pub(crate) worker: u64,
    pub(crate) number: u64,
    pub(crate) resource: String,
    pub(crate) token: u64,
    pub(crate) began: u64,
    /// The largest value if the process was killed before it knew.
    pub(crate) ended: u64,
    pub(crate) outcome: Outcome,
    /// Last time after the write at which its lock was still held, or 0 if it was not held any
    /// more.
    pub(crate) held_until: u64,
}

/// An impossible event, with the time or position of its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) what: String,
    pub(crate) at: u64,
    pub(crate) processes: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) grants: Vec<Grant>,
    pub(crate) holds: Vec<Hold>,
    pub(crate) writes: Vec<Write>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) not_granted: u64,
    pub(crate) lost: u64,
}

/// The present section of a worker.
#[derive(Default)]
struct Section {
    asked: u64,
    /// `None` before the grant, and after the loss.
    hold: Option<Hold>,
    /// The grant.
    grant: Option<Grant>,
    is_lost: bool,
    /// Index in the history of the first write under this grant.
    writes: usize,
}

impl History {
    pub(crate) fn of(logs: &[(u64, Vec<Line>)]) -> Self {
        let mut history = Self::default();
        for (process, lines) in logs {
            let mut workers: BTreeMap<u64, Vec<&Line>> = BTreeMap::new();
            lines.iter().for_each(|line| workers.entry(line.worker).or_default().push(line));
            for (worker, lines) in workers {
                let mut section = Section::default();
                for line in lines {
                    history.take(*process, worker, line, &mut section);
                }
                history.end_hold(&mut section);
            }
        }
        history
    }

    fn take(&mut self, process: u64, worker: u64, line: &Line, section: &mut Section) {
        let at = line.at;
        match line.words()[..] {
            ["asks", ..] => {
                self.end_hold(section);
                *section = Section { asked: at, writes: self.writes.len(), ..Section::default() };
            }
            ["entered", resource, mode, token, held, _] => {
                let (resource, mode, token) = (resource.to_owned(), value(mode), value(token));
                let waited = at.saturating_sub(section.asked);
                let grant = Grant { process, resource, mode, token, at, waited };
                section.grant = Some(grant.clone());
                self.grants.push(grant);
                self.look(process, worker, at, value(held), section);
            }
            ["held" | "leaving", held] => self.look(process, worker, at, value(held), section),
            ["downgraded", held] => {
                self.end_hold(section);
                if let Some(grant) = &mut section.grant {
                    grant.mode = Mode::Read;
                }
                self.look(process, worker, at, value(held), section);
            }
            ["writes", number] => match &section.grant {
                Some(Grant { resource, token, .. }) => self.writes.push(Write {
                    process,
                    worker,
                    number: value(number),
                    resource: resource.clone(),
                    token: *token,
                    began: at,
                    ended: u64::MAX,
                    outcome: Outcome::Unknown,
                    held_until: 0,
                }),
                None => self.wrong(process, at, "a write without a lock"),
            },
            ["accepted", version] => self.wrote(at, Outcome::Accepted(value(version))),
            ["rejected", newest] => self.wrote(at, Outcome::Rejected(value(newest))),
            ["not-written", ..] => self.wrote(at, Outcome::NotWritten),
            ["unknown", ..] => self.wrote(at, Outcome::Unknown),
            ["released"] if section.is_lost => {
                self.wrong(
                    process,
                    at,
                    "a lock that was lost is released as if it had been held to the end",
                );
            }
            ["lost", ..] => self.lost += 1,
            ["not-granted", ..] => self.not_granted += 1,
            ["unexplained", ..] => self.wrong(process, at, &format!("it met {}", line.event)),
            ["released"] | ["let-go", ..] | ["quiet"] | ["done"] => {}
            _ => panic!("process {process} wrote {line}"),
        }
    }

    /// Records whether the holder reports that it holds.
    fn look(&mut self, process: u64, worker: u64, at: u64, held: bool, section: &mut Section) {
        if !held {
            section.is_lost = true;
            return;
        }
        if section.is_lost {
            self.wrong(process, at, "a lock that was lost is held again");
        }
        let Some(Grant { resource, mode, token, .. }) = section.grant.clone() else {
            self.wrong(process, at, "a lock is held that was not granted");
            return;
        };
        let new = Hold { process, worker, resource, mode, token, from: at, until: at };
        section.hold.get_or_insert(new).until = at;
        for write in &mut self.writes[section.writes..] {
            write.held_until = at;
        }
    }

    fn end_hold(&mut self, section: &mut Section) {
        self.holds.extend(section.hold.take());
    }

    fn wrote(&mut self, at: u64, outcome: Outcome) {
        if let Some(write) = self.writes.last_mut() {
            (write.ended, write.outcome) = (at, outcome);
        }
    }

    fn wrong(&mut self, process: u64, at: u64, what: &str) {
        let what = format!("process {process}: {what}");
        self.violations.push(Violation { what, at, processes: vec![process] });
    }
}

fn value<T: FromStr>(word: &str) -> T {
    parsed(word).unwrap_or_else(|why| panic!("{why}"))
}
