//! A connection whose stores are parts of buckets: the keys under `part.`, as seen by a user with
//! rights to nothing else. An administrator opens the buckets.

use std::sync::Arc;

use futures_util::StreamExt;
use shizuku_kv::{Connection, Key, KvError, KvResult, KvStream, WatchScope};
use shizuku_kv_tests::faulty::{
    Answer, Call, FaultyConnection, FaultyStore, Hook, Next, Operation,
};

const PART: &str = "part.";

/// Returns the connection of a user with rights to the part. The administrator opens, lists and
/// deletes the buckets.
pub(crate) fn part(admin: Arc<dyn Connection>, app: Arc<dyn Connection>) -> Arc<dyn Connection> {
    FaultyConnection::over(app, &Arc::new(Managed(admin)))
}

#[derive(Debug)]
struct Managed(Arc<dyn Connection>);

impl Hook for Managed {
    async fn call(self: &Arc<Self>, call: Call, next: &Next) -> KvResult<Answer> {
        let admin = Next::Connection(Arc::clone(&self.0));
        match &call.operation {
            Operation::Open(name, config) => {
                admin.call(call.clone()).await?;
                let mut config = config.clone().must_exist();
                config.reconcile = false;
                let operation = Operation::Open(name.clone(), config);
                let Answer::Store(store) = next.call(Call { operation, ..call }).await? else {
                    unreachable!("the answer to an opening is a store");
                };
                Ok(FaultyStore::over(&store, &Arc::new(Part)).into())
            }
            Operation::Shutdown => next.call(call.clone()).await.and(admin.call(call).await),
            Operation::Health => next.call(call).await,
            _ => admin.call(call).await,
        }
    }
}

/// The part of a store: every key of a call gets the prefix, and every key of an answer loses it.
#[derive(Debug)]
struct Part;

impl Hook for Part {
    async fn call(self: &Arc<Self>, mut call: Call, next: &Next) -> KvResult<Answer> {
        use Operation::{
            Entries, Entry, Figures, History, Keys, LeaderEntry, Raise, Scan, Watch, Write,
            WriteMany,
        };
        match &mut call.operation {
            Entry(key) | LeaderEntry(key) | History(key) | Write(key, _) | Raise(key, _) => {
                *key = inner(key)?;
            }
            Entries(keys) => {
                for key in keys {
                    *key = inner(key)?;
                }
            }
            WriteMany(writes, _) => {
                for (key, _) in writes {
                    *key = inner(key).unwrap_or_else(|_| key.clone());
                }
            }
            Figures(of) | Scan(of) | Keys(of) | Watch(of, _) => *of = scope(of)?,
            _ => {}
        }
        let answer = next.call(call).await.map_err(error)?;
        let answer = answer.map_entries(|mut entry| {
            entry.key = outer(entry.key);
            Some(entry)
        });
        Ok(match answer {
            Answer::Stream(items) => KvStream::new(items.map(|item| item.map_err(error))).into(),
            Answer::Keys(keys) => {
                KvStream::new(keys.map(|key| key.map(outer).map_err(error))).into()
            }
            Answer::Versions(answers) => {
                answers.into_iter().map(|answer| answer.map_err(error)).collect::<Vec<_>>().into()
            }
            watch @ Answer::Watch(_) => {
                watch.map_updates(|updates| updates.map(|update| update.map_err(error)).boxed())
            }
            other => other,
        })
    }
}

fn inner(key: &Key) -> KvResult<Key> {
    Key::new(format!("{PART}{key}"))
}

fn outer(key: Key) -> Key {
    key.strip_prefix(PART).and_then(|key| Key::new(key).ok()).unwrap_or(key)
}

fn scope(scope: &WatchScope) -> KvResult<WatchScope> {
    let prefix = |prefix: &String| format!("{PART}{prefix}");
    Ok(match scope {
        WatchScope::All => WatchScope::prefix(PART),
        WatchScope::Key(key) => WatchScope::Key(inner(key)?),
        WatchScope::Keys(keys) => {
            WatchScope::Keys(keys.iter().map(inner).collect::<KvResult<_>>()?)
        }
        WatchScope::Prefix(one) => WatchScope::Prefix(prefix(one)),
        WatchScope::Prefixes(all) => WatchScope::Prefixes(all.iter().map(prefix).collect()),
        other => other.clone(),
    })
}

fn error(mut error: KvError) -> KvError {
    match &mut error {
        KvError::AlreadyExists { key, .. }
        | KvError::RevisionMismatch { key, .. }
        | KvError::Fenced { key, .. }
        | KvError::ValueTooLarge { key, .. }
        | KvError::OutcomeUnknown { key, .. }
        | KvError::Timeout { key: Some(key), .. } => *key = outer(key.clone()),
        _ => {}
    }
    error
}
