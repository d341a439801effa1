//! The journals of all processes together, as they grow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::WatchCursor;

use crate::faults::history::{History, Key, Outcome, Write};
use crate::faults::log::{Content, Event, Form, Log, Sight};
use crate::folder::child::{STORES, WATCHES, scope};
use crate::journal::{Line, Source};
use crate::linearizability::history::{self, End};
use crate::linearizability::register::Operation;

/// The writes of one store.
#[derive(Debug, Default)]
pub(crate) struct Account {
    history: History,
    /// The index in the history of each write.
    index: HashMap<usize, usize>,
    /// Newest acknowledged version of each key.
    newest: HashMap<Key, u64>,
    /// Time at which the newest acknowledged write of each group began.
    groups: HashMap<String, Duration>,
}

/// An event of a watch, with the cursor after it.
#[derive(Debug)]
enum Step {
    Seen(Duration, Option<(String, u64, Content)>, WatchCursor),
    Again(Duration, bool),
}

/// A watch that outlives its processes.
#[derive(Debug, Default)]
struct Followed {
    began: Option<Duration>,
    steps: Vec<Step>,
    seen: HashMap<String, u64>,
    cursor: Option<WatchCursor>,
    trouble: Option<String>,
}

#[derive(Debug)]
enum Part {
    Call(Operation),
    Answer(End),
}

#[derive(Debug, Default)]
pub(crate) struct Books {
    sources: Vec<(usize, Source)>,
    accounts: [Account; STORES.len()],
    watches: Vec<Followed>,
    registers: BTreeMap<String, Vec<(Duration, usize, Part)>>,
    /// For each token, its process, and the first and last time at which the lock was held.
    holds: BTreeMap<u64, (usize, Duration, Duration)>,
    quiet: BTreeSet<usize>,
    pub(crate) oddities: Vec<String>,
}

impl Books {
    /// Returns books for this many processes at a time.
    pub(crate) fn new(processes: usize) -> Self {
        let mut books = Self::default();
        books.watches.resize_with(processes * WATCHES.len(), Followed::default);
        books
    }

    pub(crate) fn follow(&mut self, number: usize, path: PathBuf) {
        self.sources.push((number, Source::new(path)));
    }

    /// Notes that the watches of a process were dropped at this time, and returns their cursors.
    pub(crate) fn restart(&mut self, first: usize, at: Duration) -> Vec<Option<Vec<u8>>> {
        let watches = &mut self.watches[first..first + WATCHES.len()];
        let restart = |watch: &mut Followed| {
            if watch.began.is_some() {
                watch.steps.push(Step::Again(at, watch.cursor.is_none()));
            }
            watch.cursor.map(|cursor| cursor.to_bytes().to_vec())
        };
        watches.iter_mut().map(restart).collect()
    }

    pub(crate) fn read_on(&mut self) {
        let mut sources = std::mem::take(&mut self.sources);
        for (number, source) in &mut sources {
            source.read_on().into_iter().for_each(|line| self.take(*number, line));
        }
        self.sources = sources;
    }

    fn take(&mut self, number: usize, line: Line) {
        match line {
            Line::Begin { store, write, key, kind, at } => {
                let account = self.account(&store);
                account.index.insert(write, account.history.writes.len());
                account.history.writes.push(Write {
                    key: key.as_str().into(),
                    kind,
                    began: at,
                    ended: Duration::MAX,
                    outcome: Outcome::Unknown,
                });
            }
            Line::End { store, write, outcome, at } => self.account(&store).end(write, outcome, at),
            Line::Opened { watch, at } => {
                self.watches[watch].began.get_or_insert(at);
            }
            Line::Seen { watch, at, sight, cursor } => {
                let watch = &mut self.watches[watch];
                let cursor = WatchCursor::from_bytes(&cursor).expect("a cursor");
                if let Some((key, version, _)) = &sight {
                    watch.seen.insert(key.clone(), *version);
                }
                watch.cursor = Some(cursor);
                watch.steps.push(Step::Seen(at, sight, cursor));
            }
            Line::Again { watch, at, is_afresh } => {
                let watch = &mut self.watches[watch];
                if is_afresh {
                    watch.cursor = None;
                }
                watch.steps.push(Step::Again(at, is_afresh));
            }
            Line::Trouble { watch, what } => self.watches[watch].trouble = Some(what),
            Line::Call { key, client, operation, at } => {
                self.registers.entry(key).or_default().push((at, client, Part::Call(operation)));
            }
            Line::Answer { key, client, end, at } => {
                self.registers.entry(key).or_default().push((at, client, Part::Answer(end)));
            }
            Line::Held { token, at } => {
                let (process, _, until) = self.holds.entry(token).or_insert((number, at, at));
                if *process != number {
                    let what = format!("token {token} is of processes {process} and {number}");
                    self.oddities.push(what);
                }
                *until = at;
            }
            Line::Odd(what) => self.oddities.push(format!("process {number}: {what}")),
            Line::Quiet => drop(self.quiet.insert(number)),
        }
    }

    fn account(&mut self, store: &str) -> &mut Account {
        let index = STORES.iter().position(|name| *name == store).expect("a store of this run");
        &mut self.accounts[index]
    }

    pub(crate) fn is_quiet(&self, number: usize) -> bool {
        self.quiet.contains(&number)
    }

    /// Returns whether each group of keys has an acknowledged write that began after this moment.
    pub(crate) fn all_groups_written_since(&self, moment: Duration) -> bool {
        let mut groups = self.accounts.iter().flat_map(|account| &account.groups);
        groups.all(|(group, began)| group == "anchor" || *began > moment)
    }

    /// Returns the newest acknowledged version of each key of each store.
    pub(crate) fn newest(&self) -> [HashMap<Key, u64>; STORES.len()] {
        self.accounts.each_ref().map(|account| account.newest.clone())
    }

    /// Returns the watches that lack an update up to these versions.
    pub(crate) fn behind(&self, newest: &[HashMap<Key, u64>]) -> Vec<usize> {
        let is_behind = |number: &usize| {
            let (watch, (store, prefix, _)) = (&self.watches[*number], Self::kind(*number));
            let scope = scope(prefix);
            let mut due = newest[store].iter().filter(|(key, _)| scope.matches(key));
            due.any(|(key, version)| watch.seen.get(&**key).is_none_or(|seen| seen < version))
        };
        (0..self.watches.len()).filter(is_behind).collect()
    }

    fn kind(number: usize) -> (usize, &'static str, crate::faults::watchers::Habit) {
        WATCHES[number % WATCHES.len()]
    }

    pub(crate) fn history(&self, store: usize) -> &History {
        &self.accounts[store].history
    }

    /// Converts a value, which names its write, so that it names the index of the write.
    pub(crate) fn content(&self, store: usize, content: Content) -> Content {
        match content {
            Content::Value(write) => {
                let index = self.accounts[store].index.get(&write);
                Content::Value(index.copied().unwrap_or(usize::MAX))
            }
            content => content,
        }
    }

    /// Returns the watches of a store.
    pub(crate) fn logs(&self, store: usize) -> Vec<Log> {
        let numbers = (0..self.watches.len()).filter(|number| Self::kind(*number).0 == store);
        numbers.map(|number| self.log(number)).collect()
    }

    fn log(&self, number: usize) -> Log {
        let (watch, (store, prefix, habit)) = (&self.watches[number], Self::kind(number));
        let (process, watch_number) = (number / WATCHES.len(), number % WATCHES.len());
        let name = format!("process {process}, watch {watch_number}, {habit:?}");
        let mut log = Log::new(name, Form::Watch, scope(prefix));
        (log.began, log.trouble) = (watch.began, watch.trouble.clone());
        for step in &watch.steps {
            match step {
                Step::Seen(at, sight, cursor) => {
                    let sight = sight.as_ref().map(|(key, version, content)| Sight {
                        key: Arc::from(key.as_str()),
                        version: *version,
                        content: self.content(store, *content),
                    });
                    log.push(*at, sight.map_or(Event::CaughtUp, Event::Sight));
                    log.cursors.push((log.events.len(), *cursor));
                }
                Step::Again(at, true) => log.push(*at, Event::Afresh),
                Step::Again(at, false) => log.push(*at, Event::Resumed),
            }
        }
        log
    }

    /// Returns the number of grants of the lock.
    pub(crate) fn grants(&self) -> usize {
        self.holds.len()
    }

    /// Checks that the lock has one holder at a time, in the order of the tokens.
    pub(crate) fn overlaps(&self) -> Vec<String> {
        let holds = self.holds.iter().zip(self.holds.iter().skip(1));
        let overlap = holds.filter(|((_, (.., until)), (_, (_, from, _)))| until >= from);
        overlap.map(|(one, next)| format!("{one:?} held the lock beside {next:?}")).collect()
    }

    /// Returns the history of each register.
    pub(crate) fn registers(&self) -> Vec<(String, history::History)> {
        let mut registers = Vec::new();
        for (key, parts) in &self.registers {
            let (mut history, mut open) = (history::History::default(), HashMap::new());
            let mut parts: Vec<_> = parts.iter().collect();
            // Sorting keeps the order of one client. Of two events at the same time, a call comes
            // first, so that both are concurrent.
            parts.sort_by_key(|(at, _, part)| (*at, matches!(part, Part::Answer(_))));
            for (at, client, part) in parts {
                match part {
                    Part::Call(operation) => {
                        open.insert(client, history.begin(*client, *operation, *at));
                    }
                    Part::Answer(end) => {
                        let call = open.remove(client).expect("a call before its answer");
                        history.end(call, *end, *at);
                    }
                }
            }
            registers.push((key.clone(), history));
        }
        registers
    }
}

impl Account {
    fn end(&mut self, write: usize, outcome: Outcome, at: Duration) {
        let write = &mut self.history.writes[self.index[&write]];
        (write.ended, write.outcome) = (at, outcome);
        let Outcome::Acknowledged(version) = outcome else { return };
        let newest = self.newest.entry(Arc::clone(&write.key)).or_default();
        *newest = version.max(*newest);
        let group = write.key.split('.').next().expect("a group").to_owned();
        let latest = self.groups.entry(group).or_default();
        *latest = write.began.max(*latest);
    }
}
