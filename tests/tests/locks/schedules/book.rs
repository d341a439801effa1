//! The global view of all holds, which no process has, and which the guarantees concern.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard};

use shizuku_kv::rw_lock::{DistroRwLockError, LockMode, ReadGuard, WriteGuard};
use tokio::time::Instant;

/// Maximum number of last events that a failure includes.
const TOLD: usize = 60;

pub(crate) enum Guard {
    Read(ReadGuard),
    Write(WriteGuard),
}

impl Guard {
    pub(crate) fn mode(&self) -> LockMode {
        match self {
            Self::Read(_) => LockMode::Read,
            Self::Write(_) => LockMode::Write,
        }
    }

    pub(crate) fn token(&self) -> u64 {
        match self {
            Self::Read(guard) => guard.fencing_token().as_u64(),
            Self::Write(guard) => guard.fencing_token().as_u64(),
        }
    }

    pub(crate) async fn release(self) -> Result<(), DistroRwLockError> {
        match self {
            Self::Read(guard) => guard.release().await,
            Self::Write(guard) => guard.release().await,
        }
    }
}

/// The interface of a holder to the book.
pub(crate) trait Holds {
    fn is_held(&self) -> bool;
}

impl Holds for Guard {
    fn is_held(&self) -> bool {
        match self {
            Self::Read(guard) => guard.is_held(),
            Self::Write(guard) => guard.is_held(),
        }
    }
}

/// A holder, or a process that believes that it holds.
struct Holder<G> {
    number: u64,
    who: String,
    resource: &'static str,
    mode: LockMode,
    token: u64,
    guard: G,
    was_lost: bool,
}

/// The tokens that were seen of a resource.
#[derive(Default)]
struct Tokens {
    all: std::collections::HashSet<u64>,
    newest: u64,
    newest_of_writers: u64,
}

struct Pages<G> {
    began: Instant,
    holders: Vec<Holder<G>>,
    tokens: HashMap<&'static str, Tokens>,
    next: u64,
    events: Vec<String>,
    violation: Option<String>,
}

/// Shared by all workers.
pub(crate) struct Book<G = Guard>(Arc<Mutex<Pages<G>>>);

impl<G> Clone for Book<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<G: Holds> Book<G> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Pages {
            began: Instant::now(),
            holders: Vec::new(),
            tokens: HashMap::new(),
            next: 0,
            events: Vec::new(),
            violation: None,
        })))
    }

    fn pages(&self) -> MutexGuard<'_, Pages<G>> {
        self.0.lock().unwrap()
    }

    pub(crate) fn note(&self, event: impl Into<String>) {
        self.pages().note(event.into());
    }

    /// Records a grant. Returns a number for the release.
    pub(crate) fn enter(
        &self,
        who: &str,
        resource: &'static str,
        mode: LockMode,
        token: u64,
        guard: G,
    ) -> u64 {
        self.pages().look_at_token(who, resource, mode, token, guard.is_held());
        self.place(who, resource, mode, token, guard)
    }

    /// Records a writer that left as a reader, under its own token.
    pub(crate) fn enter_again(
        &self,
        who: &str,
        resource: &'static str,
        token: u64,
        guard: G,
    ) -> u64 {
        self.place(who, resource, LockMode::Read, token, guard)
    }

    fn place(
        &self,
        who: &str,
        resource: &'static str,
        mode: LockMode,
        token: u64,
        guard: G,
    ) -> u64 {
        let mut pages = self.pages();
        let is_held = guard.is_held();
        pages.note(format!("{who} has {resource} to {mode}, token {token}, held {is_held}"));
        pages.next += 1;
        let number = pages.next;
        let who = who.to_owned();
        pages.holders.push(Holder {
            number,
            who,
            resource,
            mode,
            token,
            guard,
            was_lost: !is_held,
        });
        pages.check();
        number
    }

    /// Removes a holder that is about to release.
    pub(crate) fn leave(&self, number: u64) -> G {
        let mut pages = self.pages();
        pages.check();
        let place =
            pages.holders.iter().position(|holder| holder.number == number).expect("it is there");
        let holder = pages.holders.swap_remove(place);
        let is_held = holder.guard.is_held();
        pages.note(format!(
            "{} lets go of {}, token {}, held {is_held}",
            holder.who, holder.resource, holder.token
        ));
        holder.guard
    }

    /// Returns true if a worker of this process holds a lock.
    pub(crate) fn holds(&self, process: &str) -> bool {
        let is_of_it =
            |holder: &Holder<G>| holder.who.rsplit_once('.').is_some_and(|(of, _)| of == process);
        self.pages().holders.iter().any(|holder| is_of_it(holder) && holder.guard.is_held())
    }

    /// Checks the guarantees.
    pub(crate) fn check(&self) {
        self.pages().check();
    }

    pub(crate) fn wrong(&self, what: impl Into<String>) {
        self.pages().wrong(what.into());
    }

    /// Returns the violation that was found, with the events before it.
    pub(crate) fn violation(&self) -> Option<String> {
        self.pages().violation.clone()
    }
}

impl<G: Holds> Pages<G> {
    fn note(&mut self, event: String) {
        let at = self.began.elapsed();
        self.events.push(format!("{at:>10.3?} {event}"));
    }

    fn wrong(&mut self, what: String) {
        self.note(format!("WRONG: {what}"));
        if self.violation.is_some() {
            return;
        }
        let mut text = format!("{what}. What happened before:\n");
        for event in &self.events[self.events.len().saturating_sub(TOLD)..] {
            let _ = writeln!(text, "  {event}");
        }
        self.violation = Some(text);
    }

    fn look_at_token(
        &mut self,
        who: &str,
        resource: &'static str,
        mode: LockMode,
        token: u64,
        is_held: bool,
    ) {
        let tokens = self.tokens.entry(resource).or_default();
        let is_new = tokens.all.insert(token);
        let before = if mode == LockMode::Write { tokens.newest } else { tokens.newest_of_writers };
        tokens.newest = tokens.newest.max(token);
        if mode == LockMode::Write {
            tokens.newest_of_writers = tokens.newest_of_writers.max(token);
        }
        if !is_new {
            self.wrong(format!("token {token} of {resource} was given twice, now to {who}"));
        } else if is_held && token <= before {
            // A holder that has lost the lock before it learns of its grant may come late.
            self.wrong(format!("{who} holds {resource} under token {token}, after token {before}"));
        }
    }

    fn check(&mut self) {
        let mut wrong = Vec::new();
        let mut holding: Vec<&Holder<G>> = Vec::new();
        for holder in &mut self.holders {
            let is_held = holder.guard.is_held();
            if is_held && holder.was_lost {
                wrong.push(format!(
                    "{} has lost {} and holds it again",
                    holder.who, holder.resource
                ));
            }
            holder.was_lost |= !is_held;
        }
        for holder in self.holders.iter().filter(|holder| !holder.was_lost) {
            for other in holding.iter().filter(|other| other.resource == holder.resource) {
                if holder.mode == LockMode::Write || other.mode == LockMode::Write {
                    wrong.push(format!(
                        "{} and {} hold {} at a time, to {} under token {} and to {} under token {}",
                        other.who,
                        holder.who,
                        holder.resource,
                        other.mode,
                        other.token,
                        holder.mode,
                        holder.token
                    ));
                }
            }
            holding.push(holder);
        }
        for what in wrong {
            self.wrong(what);
        }
    }
}
