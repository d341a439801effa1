//! Scopes: prefixes are literal strings, any string.

use std::time::Duration;

use futures_util::future::try_join_all;

use super::observe::{Observer, WriteLog, sorted_keys};
use super::{Check, CheckResult, Fixture};
use crate::store::{KvUpdate, Store, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "scopes";
    a_scan_keeps_to_its_scope [Write]
        "A scan has the live keys that begin with one of its prefixes, literally, or are its key.",
    a_listing_keeps_to_its_scope [Write]
        "A listing has the live keys that begin with one of its prefixes, literally, or are its key.",
    the_state_of_a_watch_keeps_to_its_scope [Write, Watch]
        "The state has the live keys that begin with one of the prefixes, literally, or are the key; then the marker.",
    live_updates_keep_to_their_scope [Write, Watch]
        "What changes outside a scope does not arrive; what changes inside it arrives once, overlapping or not.",
};

const KEYS: [&str; 19] = [
    "A",
    "a",
    "a-b",
    "a.b",
    "a.b.c",
    "a.bc",
    "a/b",
    "a=b",
    "config",
    "config.D",
    "config.d",
    "config.da",
    "config.da.x",
    "config.data",
    "config.data.x",
    "config.database",
    "config.database.url",
    "configuration",
    "other",
];

/// A scope in words that do not depend on [`WatchScope::matches`].
#[derive(Clone, Copy, Debug)]
enum Case {
    All,
    Key(&'static str),
    Keys(&'static [&'static str]),
    Prefixes(&'static [&'static str]),
}

const CASES: [Case; 40] = [
    Case::All,
    Case::Key("a"),
    Case::Key("a.b"),
    Case::Key("config"),
    Case::Key("config.da"),
    Case::Key("absent"),
    Case::Keys(&[]),
    Case::Keys(&["a.b"]),
    Case::Keys(&["config.da", "a", "absent", "config", "a"]),
    Case::Prefixes(&[""]),
    Case::Prefixes(&["a"]),
    Case::Prefixes(&["a."]),
    Case::Prefixes(&["a.b"]),
    Case::Prefixes(&["a.b."]),
    Case::Prefixes(&["a/"]),
    Case::Prefixes(&["conf"]),
    Case::Prefixes(&["config"]),
    Case::Prefixes(&["config."]),
    Case::Prefixes(&["config.d"]),
    Case::Prefixes(&["config.da"]),
    Case::Prefixes(&["config.database.url"]),
    Case::Prefixes(&["config.database.url.x"]),
    // Strings with which no key begins, some of them patterns elsewhere.
    Case::Prefixes(&["*"]),
    Case::Prefixes(&[">"]),
    Case::Prefixes(&["config.*"]),
    Case::Prefixes(&["config.>"]),
    Case::Prefixes(&["*.b"]),
    Case::Prefixes(&["."]),
    Case::Prefixes(&["config.."]),
    Case::Prefixes(&[" "]),
    Case::Prefixes(&["config. "]),
    Case::Prefixes(&["config.ä"]),
    Case::Prefixes(&["$KV"]),
    Case::Prefixes(&["_kv"]),
    Case::Prefixes(&["\r\n"]),
    // Several.
    Case::Prefixes(&[]),
    Case::Prefixes(&["a.", "other"]),
    Case::Prefixes(&["config", "config.da", "config.da", "config.database"]),
    Case::Prefixes(&["*", "a."]),
    Case::Prefixes(&["", "config"]),
];

impl Case {
    fn scope(self) -> CheckResult<WatchScope> {
        Ok(match self {
            Self::All => WatchScope::All,
            Self::Key(key) => WatchScope::key(key)?,
            Self::Keys(keys) => WatchScope::keys(keys.iter().copied())?,
            Self::Prefixes(&[prefix]) => WatchScope::prefix(prefix),
            Self::Prefixes(prefixes) => WatchScope::prefixes(prefixes.iter().copied()),
        })
    }

    fn expected(self) -> Vec<&'static str> {
        let selected = |key: &&str| match self {
            Self::All => true,
            Self::Key(one) => *key == one,
            Self::Keys(keys) => keys.contains(key),
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| key.starts_with(prefix)),
        };
        KEYS.into_iter().filter(selected).collect()
    }
}

/// Every key live, and some of each neighbourhood deleted.
async fn filled(fixture: &Fixture) -> CheckResult<Store> {
    let store = fixture.store().await?;
    for key in KEYS.into_iter().chain(["config.dead", "a.dead", "dead"]) {
        store.put(key, key).await?;
    }
    for key in ["config.dead", "a.dead", "dead"] {
        store.delete(key).await?;
    }
    Ok(store)
}

/// Every scope in which there may be a difference between a literal prefix and a pattern.
pub async fn a_scan_keeps_to_its_scope(fixture: &Fixture) -> CheckResult {
    let store = filled(fixture).await?;
    for case in CASES {
        fixture.step(format!("scanning {case:?}"));
        let found = store.scan(case.scope()?).try_collect().await?;
        ensure_eq!(sorted_keys(&found), case.expected(), "a scan of {case:?}");
    }
    let longer_than_any_key = WatchScope::prefix("a".repeat(5000));
    ensure_eq!(
        store.scan(longer_than_any_key).try_collect().await?,
        [],
        "a scan of a prefix of 5,000 bytes"
    );
    Ok(())
}

/// The same scopes.
pub async fn a_listing_keeps_to_its_scope(fixture: &Fixture) -> CheckResult {
    let store = filled(fixture).await?;
    for case in CASES {
        fixture.step(format!("listing {case:?}"));
        let mut found = store.keys(case.scope()?).try_collect().await?;
        found.sort_unstable();
        ensure_eq!(found, case.expected(), "a listing of {case:?}");
    }
    Ok(())
}

/// The same scopes, each with its marker; tombstones in scope may come.
pub async fn the_state_of_a_watch_keeps_to_its_scope(fixture: &Fixture) -> CheckResult {
    let store = filled(fixture).await?;
    for case in CASES {
        fixture.step(format!("opening a watch of {case:?}"));
        let mut observer = Observer::open(fixture, &store, case.scope()?).await?;
        let mut state = observer.state().await?;
        state.retain(|entry| !entry.is_tombstone());
        ensure_eq!(sorted_keys(&state), case.expected(), "the state of {case:?}");
    }
    Ok(())
}

/// How long a watch is polled that must not deliver anything.
const QUIET: Duration = Duration::from_millis(100);

/// Two rounds of writes to all keys, with a watch of every scope open.
pub async fn live_updates_keep_to_their_scope(fixture: &Fixture) -> CheckResult {
    let store = filled(fixture).await?;
    let mut observers = Vec::new();
    for case in CASES {
        let mut observer = Observer::open(fixture, &store, case.scope()?).await?;
        observer.state().await?;
        observers.push((case, observer));
    }
    let mut log = WriteLog::default();
    for round in ["first", "second"] {
        for key in KEYS {
            log.note(key, store.put(key, round).await)?;
        }
    }
    let newest = log.newest();
    let log = &log;
    let reads = observers.into_iter().map(|(case, mut observer)| {
        let mut newest = newest.clone();
        newest.retain(|key, _| case.expected().contains(&key.as_str()));
        async move {
            let state = observer.entries().len();
            observer.reach_all(&newest).await?;
            // Whatever is too much arrives before the last write of the second round, or else within a moment.
            if newest.is_empty()
                && let Ok(item) = tokio::time::timeout(QUIET, observer.watch().next()).await
            {
                observer.check(item, "nothing")?;
            }
            for entry in observer.entries().get(state..).unwrap_or_default() {
                ensure!(
                    newest.contains_key(entry.key.as_str()),
                    "{} arrived in {case:?}",
                    entry.key
                );
                ensure!(
                    log.position(&entry.key, entry.version).is_some(),
                    "an update of key {} that nobody wrote arrived in {case:?}",
                    entry.key
                );
            }
            CheckResult::Ok(())
        }
    });
    try_join_all(reads).await?;
    // A watch that begins after the writes has their result as its state.
    let mut observer = Observer::open(fixture, &store, WatchScope::prefix("config.da")).await?;
    while !matches!(observer.next("the state").await?, KvUpdate::CaughtUp) {}
    observer.ensure_in_order(log)
}
