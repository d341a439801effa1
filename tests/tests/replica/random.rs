//! Writers, deleters, failures and crashes at random. In the end the copy equals the store, and no
//! committed checkpoint was ever beyond the updates applied by then.
//!
//! `SHIZUKU_SEED` draws the same again, but the runtime decides the turns of tasks. `SHIZUKU_LONG`
//! takes longer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{Batch, Replica, RetryPolicy, StorageError};
use shizuku_kv::{
    BatchConfig, Connection, Key, KvError, KvOperation, KvUpdate, Store, WatchCursor, WatchScope,
    connect,
};
use shizuku_kv_tests::{Random, is_long, number, seed};

use crate::disk::Disk;
use crate::support::{Refused, word};

/// The content of the copy, and the invariants of its checkpoints.
#[derive(Debug, Default)]
struct World {
    /// The state that `apply` has built: `key=value`, by key.
    applied: BTreeMap<Key, String>,
    /// The newest applied version of each key, in this incarnation of the store.
    versions: HashMap<Key, u64>,
    /// The writes to this incarnation of the store, by version: the key, and whether it was put.
    written: BTreeMap<u64, (Key, bool)>,
    /// Keys that are being written, and whose value may be in the store already.
    writing: HashSet<Key>,
    incarnation: Option<[u8; 16]>,
    trouble: Option<String>,
}

impl World {
    fn apply(&mut self, updates: &[KvUpdate]) {
        for update in updates {
            let Some(entry) = update.entry() else { continue };
            if entry.is_tombstone() {
                self.applied.remove(&entry.key);
            } else {
                self.applied.insert(entry.key.clone(), word(update));
            }
            if entry.operation == KvOperation::Vanished {
                self.versions.remove(&entry.key);
            } else {
                self.versions.insert(entry.key.clone(), entry.version.as_u64().expect("a number"));
            }
        }
    }

    /// Checks that a committed checkpoint covers only applied updates. The last write of each key
    /// up to it was applied, or a newer one is still to come.
    fn check(&mut self, cursor: Option<WatchCursor>) {
        let Some(cursor) = cursor.filter(|it| self.incarnation == Some(*it.incarnation())) else {
            // The checkpoint is of a deleted store, and the recorded writes are of the new one.
            return;
        };
        let newest: HashMap<&Key, u64> =
            self.written.iter().map(|(version, (key, _))| (key, *version)).collect();
        let missing = newest.into_iter().find(|(key, version)| {
            let is_covered = *version <= cursor.position() && !self.writing.contains(*key);
            let applied = self.versions.get(*key).copied().unwrap_or_default();
            let was_put = self.written.get(version).is_some_and(|(_, was_put)| *was_put);
            // Only the effect of a deletion counts, because a resync may have found it.
            is_covered && applied < *version && (was_put || self.applied.contains_key(*key))
        });
        if let Some((key, version)) = missing {
            let trouble =
                format!("kept {}, but {version} of {key} was not applied", cursor.position());
            self.trouble.get_or_insert(trouble);
        }
    }
}

fn key(random: &mut Random) -> Key {
    Key::new(format!("key.{}", random.below(12))).unwrap()
}

/// Writes and deletes, and books each write exclusively.
async fn step(
    store: &Store,
    world: &Mutex<World>,
    book: &tokio::sync::Mutex<()>,
    random: &mut Random,
) {
    let _alone = book.lock().await;
    let key = key(random);
    world.lock().unwrap().writing.insert(key.clone());
    let is_put = !random.once_in(3);
    let version = match is_put {
        true => store.put(key.clone(), random.number().to_string()).await.unwrap(),
        false => store.delete(key.clone()).await.unwrap(),
    };
    let mut world = world.lock().unwrap();
    world.writing.remove(&key);
    world.written.insert(version.as_u64().unwrap(), (key, is_put));
}

async fn incarnation(store: &Store) -> [u8; 16] {
    let watch = store.watch(WatchScope::prefix("none.")).await.unwrap();
    watch.next().await.unwrap().unwrap();
    *watch.cursor().unwrap().incarnation()
}

async fn round(seed: u64, rounds: u64) {
    let mut random = Random::from_seed(seed);
    let connection: Arc<dyn Connection> = connect("memory:").await.unwrap();
    let mut store = connection.store("random").await.unwrap();
    let world = Arc::new(Mutex::new(World::default()));
    world.lock().unwrap().incarnation = Some(incarnation(&store).await);
    let disk = Disk::new();
    let mut faults = Random::from_seed(random.number());
    disk.hook(move |_| match faults.once_in(40) {
        true => Err(StorageError::retryable("by chance")),
        false => Ok(()),
    });
    // Only one replica has the storage at a time.
    let closed = async || {
        while disk.handles() > 1 {
            tokio::task::yield_now().await;
        }
    };
    let chance = Arc::new(Mutex::new(Random::from_seed(random.number())));
    let apply = || {
        let (world, chance) = (Arc::clone(&world), Arc::clone(&chance));
        let disk = &disk;
        move |batch: Batch| {
            // The commit of the previous batch has ended.
            world.lock().unwrap().check(disk.cursor());
            let (world, chance) = (Arc::clone(&world), Arc::clone(&chance));
            async move {
                let (fails, waits) = {
                    let mut chance = chance.lock().unwrap();
                    (chance.once_in(8), chance.below(4))
                };
                for _ in 0..waits {
                    tokio::task::yield_now().await;
                }
                if fails {
                    return Err(Refused("by chance"));
                }
                world.lock().unwrap().apply(batch.updates());
                Ok(())
            }
        }
    };
    let moment = Duration::from_millis(1);
    for round in 0..rounds {
        let is_last = round + 1 == rounds;
        let batch = BatchConfig::new()
            .max_updates(1 + usize::try_from(random.below(6)).unwrap())
            .window(moment * u32::try_from(random.below(2)).unwrap());
        let stop = CancellationToken::new();
        closed().await;
        let mut replica = Replica::new(&store, WatchScope::All)
            .storage(disk.clone())
            .batch(batch)
            .retry(RetryPolicy::forever().pauses(moment, moment))
            .stop_on(stop.clone());
        let mut monitor = replica.monitor();
        let work = {
            let (store, world) = (store.clone(), Arc::clone(&world));
            let seeds = [random.number(), random.number(), random.number()];
            let steps = random.below(30);
            async move {
                let book = tokio::sync::Mutex::new(());
                let writers = seeds.map(|seed| {
                    let (store, world, book) = (&store, &world, &book);
                    async move {
                        let mut random = Random::from_seed(seed);
                        for _ in 0..steps {
                            step(store, world, book, &mut random).await;
                            for _ in 0..random.below(20) {
                                tokio::task::yield_now().await;
                            }
                        }
                    }
                });
                futures_util::future::join_all(writers).await;
            }
        };
        if is_last {
            // The last run goes to the end, so that all writes arrive.
            let run = replica.run(apply());
            let finish = async {
                work.await;
                let marker = Key::new("key.last").unwrap();
                let version = store.put(marker.clone(), "x").await.unwrap();
                world.lock().unwrap().written.insert(version.as_u64().unwrap(), (marker, true));
                let there = |progress: &shizuku_kv::replica::ReplicaProgress| {
                    let applied = progress.applied.map(|cursor| cursor.position());
                    progress.is_current() && applied >= version.as_u64()
                };
                while !there(&monitor.progress()) {
                    monitor.changed().await.expect("it runs");
                }
                stop.cancel();
            };
            let (end, ()) = tokio::join!(run, finish);
            end.unwrap();
        } else {
            // The run is dropped at some point, or sometimes stopped.
            let stops = random.once_in(4);
            tokio::select! {
                biased;
                () = work => {}
                ended = replica.run(apply()) => panic!("seed {seed}: {ended:?}"),
            }
            if stops {
                stop.cancel();
                replica.run(apply()).await.unwrap();
            }
        }
        if random.once_in(5) && !is_last {
            drop(replica);
            closed().await;
            recreate(&*connection, &mut store, &world, &disk).await;
        }
        // Writes while the replica does not run.
        if !is_last {
            let (book, steps) = (tokio::sync::Mutex::new(()), random.below(10));
            for _ in 0..steps {
                step(&store, &world, &book, &mut random).await;
            }
        }
    }
    let there = store.scan(WatchScope::All).try_collect().await.unwrap().into_iter();
    let there: BTreeMap<Key, String> =
        there.map(|entry| (entry.key.clone(), word(&KvUpdate::Put(entry)))).collect();
    let mut world = world.lock().unwrap();
    world.check(disk.cursor());
    assert_eq!(world.trouble, None, "seed {seed}");
    let words: Vec<String> = there.values().cloned().collect();
    assert_eq!(disk.words(), words, "seed {seed}: the storage is not as the store is");
    assert_eq!(world.applied, there, "seed {seed}: what was applied is not as the store is");
}

/// Deletes and recreates the store. A copy in memory ends with a crash and is rebuilt from its
/// storage, as the documentation requires for copies that outlive a bucket.
async fn recreate(
    connection: &dyn Connection,
    store: &mut Store,
    world: &Mutex<World>,
    disk: &Disk,
) {
    connection.delete_store("random").await.unwrap();
    assert!(matches!(store.get("key.0").await, Err(KvError::StoreNotFound { .. })));
    *store = connection.store("random").await.unwrap();
    let incarnation = incarnation(store).await;
    let mut world = world.lock().unwrap();
    let words = disk.words().into_iter();
    let by_key = |word: String| (Key::new(word.split('=').next().unwrap()).unwrap(), word);
    world.applied = words.map(by_key).collect();
    world.versions.clear();
    world.written.clear();
    world.writing.clear();
    world.incarnation = Some(incarnation);
}

#[tokio::test]
async fn random_writes_failures_and_crashes_converge() {
    let first = seed();
    // A given seed is repeated alone.
    let rounds = match number::<u64>("SHIZUKU_SEED") {
        Some(_) => 1,
        None if is_long() => 500,
        None => 8,
    };
    for seed in first..first + rounds {
        println!("seed {seed}");
        round(seed, 15).await;
    }
}
