//! A store as one process reaches it, with the faults that a test has planned.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use shizuku_kv::{Deadline, KvResult, Store, VersionToken, WriteCondition};
use shizuku_kv_tests::faulty::{Abilities, Answer, Call, FaultyStore, Hook, Next, Operation};

use crate::adversity::faults::{Faults, Kind, other_version};

/// Deadline of late writes, which arrive whatever happened to their sender.
const LONG: Duration = Duration::from_secs(60);

/// The layer between a process and the store.
#[derive(Debug)]
pub(crate) struct Backend {
    now: Mutex<Store>,
    faults: Arc<Faults>,
}

impl Backend {
    pub(crate) fn over(store: &Store, faults: &Arc<Faults>) -> Arc<Self> {
        let now = Mutex::new(FaultyStore::over(store, &Arc::new(LostKeys(Arc::clone(faults)))));
        Arc::new(Self { now, faults: Arc::clone(faults) })
    }

    /// Replaces the store by the recreated one of the same name.
    pub(crate) fn switch_to(&self, store: &Store) {
        let lossy = FaultyStore::over(store, &Arc::new(LostKeys(Arc::clone(&self.faults))));
        *self.now.lock().unwrap() = lossy;
    }

    /// Lets the writes in transit arrive, and returns their results.
    pub(crate) async fn arrive(&self) -> Vec<KvResult<VersionToken>> {
        let mut results = Vec::new();
        for operation in self.faults.take_late() {
            let call = Call { operation, deadline: Deadline::after(LONG) };
            results.push(self.next().call(call).await.and_then(TryFrom::try_from));
        }
        results
    }

    fn next(&self) -> Next {
        Next::Store(Arc::clone(self.now.lock().unwrap().backend()))
    }
}

/// A crashed process sends nothing and hears of nothing.
impl Hook for Backend {
    async fn call(self: &Arc<Self>, call: Call, _: &Next) -> KvResult<Answer> {
        let (faults, next) = (&self.faults, self.next());
        match &call.operation {
            Operation::Watch(scope, _) => {
                faults.sent().await;
                faults.watching(scope).await?;
                let faults = Arc::clone(faults);
                let answer = next.call(call).await?;
                Ok(answer.map_updates(|updates| {
                    let heard = updates.then(move |update| {
                        let faults = Arc::clone(&faults);
                        async move {
                            faults.sent().await;
                            faults.heard().await;
                            update
                        }
                    });
                    heard.boxed()
                }))
            }
            // A leader may have been replaced too, and not know it yet.
            Operation::Entry(key) | Operation::LeaderEntry(key) => {
                faults.called();
                faults.sent().await;
                match faults.finding(key).await {
                    Some(found) => Ok(found.map(|entry| faults.dated(entry)).into()),
                    None => faults.plan.call(call, &next).await,
                }
            }
            Operation::Entries(_) => {
                faults.called();
                faults.sent().await;
                next.call(call).await
            }
            Operation::Write(key, write) => {
                faults.called();
                faults.sent().await;
                faults.writing(Kind::of(write.name(), key)).await;
                faults.plan.call(call, &next).await
            }
            _ => next.call(call).await,
        }
    }

    /// No lock here writes with times to live.
    fn abilities(&self, abilities: Abilities) -> Abilities {
        let incarnation = self.now.lock().unwrap().backend().incarnation();
        Abilities { incarnation, granularity: None, ..abilities }
    }
}

/// The store without the keys that a test has lost, and with the times that a test has changed.
#[derive(Debug)]
struct LostKeys(Arc<Faults>);

impl Hook for LostKeys {
    async fn call(self: &Arc<Self>, mut call: Call, next: &Next) -> KvResult<Answer> {
        if let Operation::Write(key, write) = &mut call.operation {
            match write.condition {
                WriteCondition::Exactly(expected) if self.0.is_lost(key) => {
                    return Err(other_version(key, expected));
                }
                // The lost entry no longer exists.
                WriteCondition::Any | WriteCondition::Absent
                    if !write.is_deletion() && self.0.find_key(key) =>
                {
                    write.condition = WriteCondition::Any;
                }
                _ => {}
            }
        }
        let faults = Arc::clone(&self.0);
        let answer = next.call(call).await?;
        Ok(answer
            .map_entries(move |entry| (!faults.is_lost(&entry.key)).then(|| faults.dated(entry))))
    }
}
