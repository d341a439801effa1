//! Readers of watches and live values, each of which keeps a log.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use shizuku_kv::{
    KeyValueRead, KvEntry, KvError, KvOperation, KvReadError, KvUpdate, Live, LiveSnapshot,
    LiveSyncState, Store, TypedEntry, TypedUpdate, TypedWatch, Watch, WatchCursor, WatchScope,
};
use shizuku_kv_tests::Random;
use tokio::sync::watch;

use crate::faults::log::{Content, Event, Log, Sight};
use crate::faults::record::Cell;
use crate::faults::run::PATIENCE;
use crate::faults::world::Phase;
use crate::journal::{Clock, Journal, Line};

/// The behaviour of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Reads updates as they come.
    Prompt,
    /// Starts some time after the others.
    Late,
    /// Drops the future of the next update repeatedly.
    Restless,
    /// Pauses after each update, until there is quiet.
    Slow,
    /// Stops reading after it is caught up, until there is quiet.
    Asleep,
    /// Drops the watch repeatedly and opens another one: from its cursor, and sometimes from the
    /// start.
    Roaming,
}

/// The interface of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    Raw,
    Typed,
}

/// An open watch.
enum Source {
    Raw(Watch),
    Typed(TypedWatch<Cell>),
}

impl Source {
    async fn open(
        interface: Interface,
        store: &Store,
        scope: WatchScope,
        from: Option<WatchCursor>,
    ) -> Result<Self, KvError> {
        let typed = |opened: Result<TypedWatch<Cell>, KvReadError>| match opened {
            Ok(watch) => Ok(Self::Typed(watch)),
            Err(KvReadError::Store(error)) => Err(error),
            Err(other) => panic!("{other}"),
        };
        match (interface, from, scope) {
            (Interface::Raw, None, scope) => Ok(Self::Raw(store.watch(scope).await?)),
            (Interface::Raw, Some(cursor), scope) => {
                Ok(Self::Raw(store.watch_from(scope, cursor).await?))
            }
            (Interface::Typed, None, WatchScope::All) => typed(Cell::watch_all(store).await),
            (Interface::Typed, None, WatchScope::Key(key)) => {
                let (group, number) = key.split_once('.').expect("a group and a number");
                let number: u32 = number.parse().expect("a number");
                typed(Cell::watch(store, (group.to_owned(), number)).await)
            }
            (Interface::Typed, None, scope) => typed(Cell::watch_scope(store, scope).await),
            (Interface::Typed, Some(cursor), scope) => {
                typed(Cell::watch_scope_from(store, scope, cursor).await)
            }
        }
    }

    /// Returns the next event, or the reason why there is none.
    async fn next(&mut self) -> Result<Event, String> {
        match self {
            Self::Raw(watch) => match watch.next().await {
                Some(Ok(update)) => event(update),
                Some(Err(error)) => Err(format!("it ended: {error}")),
                None => Err("it ended without a word".to_owned()),
            },
            Self::Typed(watch) => match watch.next().await {
                Some(Ok(update)) => Ok(typed_event(update)),
                Some(Err(error)) => Err(format!("it ended: {error}")),
                None => Err("it ended without a word".to_owned()),
            },
        }
    }

    fn cursor(&self) -> Option<WatchCursor> {
        match self {
            Self::Raw(watch) => watch.cursor(),
            Self::Typed(watch) => watch.cursor(),
        }
    }
}

/// Converts a raw update to an event.
pub(crate) fn event(update: KvUpdate) -> Result<Event, String> {
    update.into_entry().map_or(Ok(Event::CaughtUp), |entry| Ok(Event::Sight(sight(&entry)?)))
}

/// Converts an entry to an observation.
pub(crate) fn sight(entry: &KvEntry) -> Result<Sight, String> {
    let content = match entry.operation {
        KvOperation::Put => Content::Value(Cell::found(&entry.key, &entry.value)?.write),
        operation => absent(operation),
    };
    let version = entry.version.as_u64().expect("a number");
    Ok(Sight { key: entry.key.as_str().into(), version, content })
}

fn absent(operation: KvOperation) -> Content {
    match operation {
        KvOperation::Delete => Content::Deleted,
        KvOperation::Purge => Content::Purged,
        KvOperation::Expire => Content::Expired,
        other => panic!("{other:?} is no deletion"),
    }
}

fn typed_event(update: TypedUpdate<Cell>) -> Event {
    let (key, version, content) = match update {
        TypedUpdate::CaughtUp => return Event::CaughtUp,
        TypedUpdate::Put(entry) => {
            (entry.key(), TypedEntry::version(&entry), Content::Value(entry.write))
        }
        TypedUpdate::Delete { key, version, operation, .. } => {
            (key.to_string(), version, absent(operation))
        }
        _ => panic!("another kind of update"),
    };
    Event::Sight(Sight { key: key.into(), version: version.as_u64().expect("a number"), content })
}

/// One reader, in a task of its own.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) store: Store,
    pub(crate) log: Arc<Mutex<Log>>,
    pub(crate) clock: Clock,
    /// The number of the watch, and a journal for another process.
    pub(crate) journal: Option<(usize, Journal)>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) random: Random,
}

/// The end of the reading.
struct Over;

impl Reader {
    /// Follows a watch until the run is over, from a cursor if there is one.
    pub(crate) async fn watch(
        mut self,
        interface: Interface,
        habit: Habit,
        late: Duration,
        mut from: Option<WatchCursor>,
    ) {
        if habit == Habit::Late {
            tokio::time::sleep(late).await;
        }
        while let Some(mut source) = self.open(interface, from).await {
            let Ok(cursor) = self.read(&mut source, habit).await else { return };
            drop(source);
            let again = self.random.once_in(5);
            from = cursor.filter(|_| !again);
            // Converts the cursor to bytes and back, as for storage.
            from = from.map(|cursor| {
                WatchCursor::from_bytes(&cursor.to_bytes()).expect("it was written here")
            });
            self.note(if from.is_some() { Event::Resumed } else { Event::Afresh });
        }
    }

    /// Opens a watch, with retries. Returns `None` if the run is over, or after recording trouble.
    async fn open(&mut self, interface: Interface, from: Option<WatchCursor>) -> Option<Source> {
        let scope = {
            let mut log = self.log.lock().unwrap();
            let at = *log.began.get_or_insert_with(|| self.clock.elapsed());
            self.journal(|watch| Line::Opened { watch, at });
            log.scope.clone()
        };
        while *self.phase.borrow() != Phase::Over {
            match Source::open(interface, &self.store, scope.clone(), from).await {
                Ok(source) => return Some(source),
                Err(error) if error.is_retryable() => {}
                Err(error) => {
                    self.trouble(format!("it cannot be opened: {error}"));
                    return None;
                }
            }
        }
        None
    }

    /// Reads for as long as this reader keeps a watch, and returns its cursor.
    async fn read(
        &mut self,
        source: &mut Source,
        habit: Habit,
    ) -> Result<Option<WatchCursor>, Over> {
        let moves = Duration::from_millis(100 + self.random.below(2500));
        let moves = (habit == Habit::Roaming).then(|| tokio::time::Instant::now() + moves);
        let mut phase = self.phase.clone();
        loop {
            let is_quiet = *self.phase.borrow() != Phase::Faults;
            let restless = (habit == Habit::Restless && !is_quiet)
                .then(|| Duration::from_millis(self.random.below(8)));
            let event = tokio::select! {
                event = source.next() => event,
                _ = phase.wait_for(|phase| *phase == Phase::Over) => return Err(Over),
                () = tokio::time::sleep_until(moves.unwrap_or_else(tokio::time::Instant::now)),
                    if moves.is_some() && !is_quiet =>
                {
                    return Ok(source.cursor());
                }
                () = tokio::time::sleep(restless.unwrap_or_default()), if restless.is_some() => {
                    continue;
                }
            };
            match event {
                Ok(event) => {
                    let is_caught_up = event == Event::CaughtUp;
                    self.note(event);
                    self.keep(source.cursor().expect("an update has come"));
                    let rest = match habit {
                        Habit::Slow => Duration::from_millis(self.random.below(60)),
                        Habit::Asleep if is_caught_up => Duration::MAX,
                        _ => Duration::ZERO,
                    };
                    if !rest.is_zero() {
                        let quiet = phase.wait_for(|phase| *phase != Phase::Faults);
                        let _ = tokio::time::timeout(rest, quiet).await;
                    }
                }
                Err(why) => {
                    self.trouble(why);
                    return Err(Over);
                }
            }
        }
    }

    /// Follows a live value until the run is over.
    pub(crate) async fn live<T: Send + Sync + 'static>(
        mut self,
        key: String,
        live: Live<T>,
        record: fn(&T) -> Option<&Cell>,
    ) {
        let values = live.stream();
        loop {
            let value = tokio::select! {
                value = values.next() => value,
                _ = self.phase.wait_for(|phase| *phase == Phase::Over) => break,
            };
            let Some(value) = value else {
                return self.trouble(format!("it ended: {:?}", live.status()));
            };
            let content = record(LiveSnapshot::value(&value))
                .map(|cell| (cell.key(), Content::Value(cell.write)));
            match (content, LiveSnapshot::version(&value)) {
                (None, None) => self.note(Event::Gone(key.as_str().into())),
                (Some((found, content)), Some(version)) if found == key => {
                    let version = version.as_u64().expect("a number");
                    self.note(Event::Sight(Sight { key: key.as_str().into(), version, content }));
                }
                (content, version) => {
                    return self.trouble(format!("it is {content:?} with version {version:?}"));
                }
            }
        }
        // A key that does not change need not deliver anything: its watch may still pause before
        // the next try.
        let statuses = live.statuses();
        let heals =
            async { while !live.status().link.is_up() && statuses.next().await.is_some() {} };
        let _ = tokio::time::timeout(PATIENCE, heals).await;
        let status = live.status();
        let is_there = record(&live.load()).is_some();
        let is_right = match &status.sync_state {
            LiveSyncState::Current => is_there,
            LiveSyncState::Absent { .. } => !is_there,
            _ => false,
        };
        if !is_right || !status.link.is_up() {
            self.trouble(format!(
                "in the end its status is {status:?}, and a value is there: {is_there}"
            ));
        }
    }

    fn note(&self, event: Event) {
        let at = self.clock.elapsed();
        let is_afresh = event == Event::Afresh;
        if is_afresh || event == Event::Resumed {
            self.journal(|watch| Line::Again { watch, at, is_afresh });
        }
        self.log.lock().unwrap().push(at, event);
    }

    fn journal(&self, line: impl FnOnce(usize) -> Line) {
        if let Some((watch, journal)) = &self.journal {
            journal.note(&line(*watch));
        }
    }

    /// Keeps the cursor after the last event. A journal gets both in one line.
    fn keep(&self, cursor: WatchCursor) {
        let mut log = self.log.lock().unwrap();
        if let Some((at, event)) = log.events.last() {
            let sight = match event {
                Event::Sight(sight) => Some((sight.key.to_string(), sight.version, sight.content)),
                _ => None,
            };
            let cursor = cursor.to_bytes().to_vec();
            self.journal(|watch| Line::Seen { watch, at: *at, sight, cursor });
        }
        let events = log.events.len();
        log.cursors.push((events, cursor));
    }

    fn trouble(&self, what: String) {
        let what = format!("at {:.3?} {what}", self.clock.elapsed());
        self.journal(|watch| Line::Trouble { watch, what: what.clone() });
        self.log.lock().unwrap().trouble = Some(what);
    }
}
