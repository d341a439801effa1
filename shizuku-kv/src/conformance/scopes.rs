//! Scopes: prefixes are literal strings with which a key can start.

use std::time::Duration;

use futures_util::future::try_join_all;

use super::observe::{Observer, WriteLog, sorted_keys};
use super::{Check, CheckResult, Fixture};
use crate::store::{KvError, KvUpdate, Store, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "scopes";
    a_scan_keeps_to_its_scope [Write]
        "A scan has the live keys that begin with one of its prefixes, literally, or are its key.",
    a_listing_keeps_to_its_scope [Write]
        "A listing has the live keys that begin with one of its prefixes, literally, or are its \
         key.",
    the_state_of_a_watch_keeps_to_its_scope [Write, Watch]
        "The initial state has the live keys that begin with one of the prefixes, literally, or \
         are the key. The marker follows.",
    live_updates_keep_to_their_scope [Write, Watch]
        "A change outside a scope does not arrive. A change inside it arrives once, overlapping \
         or not.",
    a_prefix_of_no_key_is_invalid []
        "A prefix of no possible key is InvalidKey with the position of its first offending byte.",
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

/// A scope in terms that do not depend on [`WatchScope::matches`].
#[derive(Clone, Copy, Debug)]
enum Case {
    All,
    Key(&'static str),
    Keys(&'static [&'static str]),
    Prefixes(&'static [&'static str]),
}

const CASES: [Case; 30] = [
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
    // Prefixes of absent keys.
    Case::Prefixes(&["none."]),
    Case::Prefixes(&["config.d="]),
    Case::Prefixes(&["_k"]),
    // Several prefixes.
    Case::Prefixes(&[]),
    Case::Prefixes(&["a.", "other"]),
    Case::Prefixes(&["config", "config.da", "config.da", "config.database"]),
    Case::Prefixes(&["none.", "a."]),
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

/// Writes every key, and deletes some neighbours of each.
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

/// Uses every scope for which a literal prefix and a pattern may differ.
pub async fn a_scan_keeps_to_its_scope(fixture: &Fixture) -> CheckResult {
    let store = filled(fixture).await?;
    for case in CASES {
        fixture.step(format!("scanning {case:?}"));
        let found = store.scan(case.scope()?).try_collect().await?;
        ensure_eq!(sorted_keys(&found), case.expected(), "a scan of {case:?}");
    }
    Ok(())
}

/// Uses the same scopes.
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

/// Uses the same scopes, each with its marker. Tombstones in scope may come.
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

/// Uses the prefix in scans, listings and watches; alone, and beside a valid prefix.
pub async fn a_prefix_of_no_key_is_invalid(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut prefixes = [
        ("*", 0),
        (">", 0),
        ("config.*", 7),
        ("config.>", 7),
        ("*.b", 0),
        ("a*", 1),
        (".", 0),
        ("..", 0),
        (".config", 0),
        ("config..", 7),
        (" ", 0),
        ("acme com", 4),
        ("config. ", 7),
        ("config.ä", 7),
        ("$KV", 0),
        ("_kv", 0),
        ("_kv.x", 0),
        ("\r\n", 0),
        ("a\0", 1),
    ]
    .map(|(prefix, position)| (prefix.to_owned(), position))
    .to_vec();
    prefixes.push(("a".repeat(1025), 1024));
    // The token after the dot has no room.
    prefixes.push((format!("{}.", "a".repeat(1023)), 1024));
    for (prefix, position) in &prefixes {
        for scope in [WatchScope::prefix(prefix), WatchScope::prefixes(["a.", prefix.as_str()])] {
            let mut answers = vec![
                ("a scan", store.scan(scope.clone()).try_collect().await.map(drop)),
                ("a listing", store.keys(scope.clone()).try_collect().await.map(drop)),
            ];
            if fixture.capabilities().watch {
                answers.push(("a watch", store.watch(scope.clone()).await.map(drop)));
            }
            for (what, answer) in answers {
                let is_right = matches!(
                    &answer,
                    Err(KvError::InvalidKey { key, position: found, .. })
                        if prefix.starts_with(key.trim_end_matches('…')) && found == position
                );
                ensure!(
                    is_right,
                    "{what} of the prefix {prefix:?}: expected InvalidKey, found {answer:?}"
                );
            }
        }
    }
    Ok(())
}

/// Duration for which a watch is polled that must not deliver anything.
const QUIET: Duration = Duration::from_millis(100);

/// Makes two rounds of writes to all keys, with a watch of every scope open.
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
            // A surplus update arrives before the last write of the second round, or otherwise
            // within a moment.
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
    // A watch that begins after the writes has their result as its initial state.
    let mut observer = Observer::open(fixture, &store, WatchScope::prefix("config.da")).await?;
    while !matches!(observer.next("the state").await?, KvUpdate::CaughtUp) {}
    observer.ensure_in_order(log)
}
