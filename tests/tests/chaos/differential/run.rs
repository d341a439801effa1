//! One run: the same random operations on both backends, drawn from a seed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::{join, join_all};
use shizuku_kv::{
    FencingToken, Key, KvError, KvOperation, KvResult, Store, VersionToken, WatchScope,
};
use tokio::time::{Instant, sleep};

use crate::differential::ledger::{Ledger, Side, Write};
use crate::differential::mirror::Mirror;
use crate::differential::readers::{Listing, Saved, Watching};

/// Keys that are parents, prefixes and neighbours of each other.
const KEYS: [&str; 12] =
    ["a", "a.b", "a.b.c", "ab", "a-b", "b.1", "b.2", "b.10", "c.d.e", "c.d", "z", "k_1"];

/// Maximum size of a value in stores that limit it.
pub(crate) const LARGEST: usize = 400;

/// Maximum size of a value that fits into such a store with every kind of write. On NATS an
/// expected version, a fencing token and a time to live take up to 160 bytes of the limit of a
/// message.
const FITTING: usize = LARGEST - 160;

/// Minimum time to live.
const TTL: Duration = Duration::from_secs(1);

/// A value that expires is overwritten or awaited before this age, so that no operation meets it
/// while it expires.
const SURELY_ALIVE: Duration = Duration::from_millis(500);

/// Timeout for an item of a watch before the next operation.
const PATIENCE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) history: u8,
    pub(crate) key_ttl: bool,
    pub(crate) limits_size: bool,
    pub(crate) steps: usize,
    /// Keys of the store besides the twelve that all operations use.
    pub(crate) many: usize,
}

impl Plan {
    /// Returns the operation of a purge's entry: in a store whose tombstones expire, that of a
    /// deletion.
    fn purged(&self) -> KvOperation {
        if self.key_ttl { KvOperation::Delete } else { KvOperation::Purge }
    }

    pub(crate) fn of(seed: u64, has_ttl: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let history = [1, 2, 5, 64][(seed % 4) as usize];
        Self {
            seed,
            history,
            key_ttl: has_ttl && history == 1 && rng.u8(..4) == 0,
            limits_size: rng.u8(..4) == 0,
            steps: rng.usize(40..160),
            many: if rng.u8(..24) == 0 { rng.usize(9_000..14_000) } else { 0 },
        }
    }
}

/// The results of both backends for one operation.
type Answers<T> = [KvResult<T>; 2];

pub(crate) struct Run {
    plan: Plan,
    rng: Rng,
    stores: [Store; 2],
    ledger: Arc<Ledger>,
    watches: Vec<[Watching; 2]>,
    listings: Vec<[Listing; 2]>,
    saved: Vec<[Saved; 2]>,
    /// A replica of the store on NATS.
    mirror: Mirror,
    /// Keys with a time to live, and when they were written.
    expiring: Vec<(Key, u64, Instant)>,
    /// True after concurrent writers have made the order of writes differ between the sides.
    has_burst: bool,
    log: Vec<String>,
}

impl Run {
    pub(crate) fn new(plan: Plan, stores: [Store; 2]) -> Self {
        Self {
            plan,
            rng: Rng::with_seed(plan.seed ^ 0x5348_495a_554b_5544),
            mirror: Mirror::new(&stores[Side::Nats.index()]),
            stores,
            ledger: Arc::new(Ledger::new(plan.key_ttl)),
            watches: Vec::new(),
            listings: Vec::new(),
            saved: Vec::new(),
            expiring: Vec::new(),
            has_burst: false,
            log: Vec::new(),
        }
    }

    /// Runs to the end, or to the first difference.
    pub(crate) async fn run(mut self) -> Result<(), String> {
        let result = self.steps().await;
        result.map_err(|why| {
            let tail = self.log.len().saturating_sub(60);
            format!("{:?}\n  {}\n{why}", self.plan, self.log[tail..].join("\n  "))
        })
    }

    async fn steps(&mut self) -> Result<(), String> {
        if self.rng.bool() {
            self.replicate().await?;
        }
        if self.plan.many > 0 {
            self.many().await?;
        }
        for _ in 0..self.plan.steps {
            self.expire_before_it_is_near().await?;
            self.step().await?;
            for watching in self.watches.iter_mut().flatten() {
                watching.check(&self.ledger)?;
            }
        }
        for (key, ..) in self.expiring.clone() {
            self.await_expiry(&key).await?;
        }
        for listings in std::mem::take(&mut self.listings) {
            for listing in listings {
                listing.finish(&self.ledger).await?;
            }
        }
        for watching in self.watches.iter_mut().flatten() {
            watching.settle(&self.ledger).await?;
        }
        self.mirror.settle(&self.ledger).await?;
        self.compare_state(&WatchScope::All).await?;
        for key in KEYS {
            self.compare_key(&Key::new(key).unwrap()).await?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.rng.u8(..100) {
            0..24 => self.put().await,
            24..30 => self.create().await,
            30..38 => self.update().await,
            38..46 => self.delete().await,
            46..51 => self.purge().await,
            51..54 => self.put_many().await,
            54..58 => self.fenced().await,
            58..61 => self.put_with_ttl().await,
            61..66 => {
                let key = self.key();
                self.compare_key(&key).await
            }
            66..69 => {
                let scope = self.scope();
                self.compare_state(&scope).await
            }
            69..75 => self.open_watch().await,
            75..82 => self.read_watch().await,
            82..85 => self.save_cursor().await,
            85..89 => self.resume_watch().await,
            89..91 => self.close_watch(),
            91..94 => self.open_listing(),
            94..98 => self.read_listing().await,
            98 => self.burst().await,
            _ => self.replicate().await,
        }
    }

    fn key(&mut self) -> Key {
        Key::new(KEYS[self.rng.usize(..KEYS.len())]).unwrap()
    }

    fn value(&mut self) -> Bytes {
        let size = match self.plan.limits_size {
            true if self.rng.u8(..20) == 0 => LARGEST + self.rng.usize(1..50),
            true => self.rng.usize(..=FITTING),
            false => self.rng.usize(..300),
        };
        let mut value = vec![0; size];
        self.rng.fill(&mut value);
        value.into()
    }

    fn scope(&mut self) -> WatchScope {
        match self.rng.u8(..6) {
            0..3 => WatchScope::All,
            3 => WatchScope::prefix(["a", "a.", "b.", "c.d.", "none."][self.rng.usize(..5)]),
            4 => WatchScope::Key(self.key()),
            _ => {
                let count = self.rng.usize(1..5);
                let keys: Vec<_> = (0..count).map(|_| self.key()).collect();
                WatchScope::keys(keys.iter().map(|key| &**key)).unwrap()
            }
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        self.log.push(format!("[{}] {}", self.ledger.tick(), what.into()));
    }

    /// Makes a write on both sides, compares the results with each other and with `expected`, and
    /// records a success.
    async fn write<F>(
        &mut self,
        key: &Key,
        write: Write,
        expected: Option<&'static str>,
        mut act: impl FnMut(Store, Side) -> F,
    ) -> Result<bool, String>
    where
        F: Future<Output = KvResult<VersionToken>>,
    {
        let sent = Side::BOTH.map(|_| self.ledger.tick());
        let mut answers = Vec::new();
        let mut acknowledged = sent;
        for side in Side::BOTH {
            answers.push(act(self.stores[side.index()].clone(), side).await);
            acknowledged[side.index()] = self.ledger.tick();
        }
        let [memory, nats]: Answers<VersionToken> = answers.try_into().unwrap();
        for (side, answer) in [(Side::Memory, &memory), (Side::Nats, &nats)] {
            if kind(answer) != expected {
                return Err(format!("{side:?} answered {answer:?}, expected {expected:?}"));
            }
        }
        let (Ok(memory), Ok(nats)) = (memory, nats) else { return Ok(false) };
        self.expiring.retain(|(expiring, ..)| expiring != key);
        self.ledger.add(key, Write { versions: [memory, nats], sent, acknowledged, ..write });
        Ok(true)
    }

    /// Returns the error caused by the size of a value, if any.
    fn too_large(&self, value: &Bytes) -> Option<&'static str> {
        (self.plan.limits_size && value.len() > LARGEST).then_some("ValueTooLarge")
    }

    async fn put(&mut self) -> Result<(), String> {
        let (key, value) = (self.key(), self.value());
        self.note(format!("put {key} ({} bytes)", value.len()));
        let expected = self.too_large(&value);
        let write = blank(KvOperation::Put, &value);
        self.write(&key.clone(), write, expected, |store, _| {
            let (key, value) = (key.clone(), value.clone());
            async move { store.put(key, value).await }
        })
        .await
        .map(drop)
    }

    async fn create(&mut self) -> Result<(), String> {
        let (key, value) = (self.key(), self.value());
        self.note(format!("create {key}"));
        let is_live = self.ledger.newest(&key).is_some_and(|write| write.is_live());
        let expected = self.too_large(&value).or(is_live.then_some("AlreadyExists"));
        let write = blank(KvOperation::Put, &value);
        self.write(&key.clone(), write, expected, |store, _| {
            let (key, value) = (key.clone(), value.clone());
            async move { store.create(key, value).await }
        })
        .await
        .map(drop)
    }

    /// Returns a version to expect: the newest, an older one, another key's, or one that never
    /// existed. Also returns whether it is the newest.
    fn version(&mut self, key: &Key) -> ([VersionToken; 2], bool) {
        let never = [VersionToken::from_u64(u64::MAX / 2); 2];
        let other = self.key();
        let writes = self.ledger.writes();
        let all = writes.get(key).map_or(&[][..], Vec::as_slice);
        let pick = match self.rng.u8(..8) {
            0..5 => all.last(),
            5 if !all.is_empty() => all.get(self.rng.usize(..all.len())),
            6 => writes.get(&other).and_then(|all| all.last()),
            _ => None,
        };
        let versions = pick.map_or(never, |write| write.versions);
        (versions, all.last().is_some_and(|write| write.versions == versions))
    }

    async fn update(&mut self) -> Result<(), String> {
        let (key, value) = (self.key(), self.value());
        let (versions, is_newest) = self.version(&key);
        self.note(format!("update {key} expecting {versions:?}"));
        let expected = self.too_large(&value).or((!is_newest).then_some("RevisionMismatch"));
        let write = blank(KvOperation::Put, &value);
        self.write(&key.clone(), write, expected, |store, side| {
            let (key, value, version) = (key.clone(), value.clone(), versions[side.index()]);
            async move { store.update(key, value, version).await }
        })
        .await
        .map(drop)
    }

    async fn delete(&mut self) -> Result<(), String> {
        let key = self.key();
        let versions = self.rng.bool().then(|| self.version(&key));
        self.note(format!("delete {key} expecting {versions:?}"));
        let expected =
            versions.is_some_and(|(_, is_newest)| !is_newest).then_some("RevisionMismatch");
        let write = blank(KvOperation::Delete, &Bytes::new());
        self.write(&key.clone(), write, expected, |store, side| {
            let (key, version) =
                (key.clone(), versions.map(|(versions, _)| versions[side.index()]));
            async move {
                match version {
                    Some(version) => store.delete_with_version(key, version).await,
                    None => store.delete(key).await,
                }
            }
        })
        .await
        .map(drop)
    }

    async fn purge(&mut self) -> Result<(), String> {
        let key = self.key();
        self.note(format!("purge {key}"));
        let write = blank(self.plan.purged(), &[]);
        self.write(&key.clone(), write, None, |store, _| {
            let key = key.clone();
            async move { store.purge(key).await }
        })
        .await
        .map(drop)
    }

    async fn fenced(&mut self) -> Result<(), String> {
        let (key, value, token) =
            (self.key(), self.value(), FencingToken::from_u64(self.rng.u64(1..6)));
        let deletes = self.rng.bool();
        self.note(format!(
            "fenced {} of {key} with {token:?}",
            if deletes { "delete" } else { "put" }
        ));
        let is_older = self
            .ledger
            .newest(&key)
            .and_then(|write| write.fence)
            .is_some_and(|known| known > token);
        let fenced = is_older.then_some("Fenced");
        let (write, expected) = if deletes {
            (blank(KvOperation::Delete, &Bytes::new()), fenced)
        } else {
            (blank(KvOperation::Put, &value), self.too_large(&value).or(fenced))
        };
        let write = Write { fence: Some(token), ..write };
        self.write(&key.clone(), write, expected, |store, _| {
            let (key, value) = (key.clone(), value.clone());
            async move {
                let fenced = store.fenced().expect("neither store loses entries by itself");
                if deletes {
                    fenced.delete(key, token).await
                } else {
                    fenced.put(key, value, token).await
                }
            }
        })
        .await
        .map(drop)
    }

    async fn put_with_ttl(&mut self) -> Result<(), String> {
        if !self.plan.key_ttl || !self.expiring.is_empty() {
            return self.put().await;
        }
        let (key, value) = (self.key(), self.value());
        self.note(format!("put {key} with a time to live"));
        let (expected, write) = (self.too_large(&value), blank(KvOperation::Put, &value));
        let (written, tick) = (Instant::now(), self.ledger.tick());
        let is_written = self
            .write(&key.clone(), write, expected, |store, _| {
                let (key, value) = (key.clone(), value.clone());
                async move {
                    store.ttl().expect("the store has times to live").put(key, value, TTL).await
                }
            })
            .await?;
        if is_written {
            self.expiring.push((key, tick, written));
        }
        Ok(())
    }

    async fn expire_before_it_is_near(&mut self) -> Result<(), String> {
        let old = |(_, _, written): &&(Key, u64, Instant)| written.elapsed() > SURELY_ALIVE;
        match self.expiring.iter().find(old).cloned() {
            Some((key, ..)) => self.await_expiry(&key).await,
            None => Ok(()),
        }
    }

    /// Waits until a value has expired on both sides, and records it as a write.
    async fn await_expiry(&mut self, key: &Key) -> Result<(), String> {
        let Some(at) = self.expiring.iter().position(|(expiring, ..)| expiring == key) else {
            return Ok(());
        };
        let (_, tick, _) = self.expiring.remove(at);
        self.note(format!("{key} expires"));
        let mut versions = Vec::new();
        for store in &self.stores {
            let end = Instant::now() + Duration::from_secs(20);
            versions.push(loop {
                match store.entry(key.clone()).await.map_err(|e| e.to_string())? {
                    Some(entry) if entry.operation == KvOperation::Expire => break entry.version,
                    found if Instant::now() >= end => {
                        return Err(format!("{key} does not expire in {store:?}: {found:?}"));
                    }
                    _ => sleep(Duration::from_millis(10)).await,
                }
            });
        }
        let versions: [VersionToken; 2] = versions.try_into().unwrap();
        let now = self.ledger.tick();
        let write = blank(KvOperation::Expire, &Bytes::new());
        self.ledger.add(key, Write { versions, sent: [tick; 2], acknowledged: [now; 2], ..write });
        Ok(())
    }

    async fn put_many(&mut self) -> Result<(), String> {
        let items: Vec<_> = (0..self.rng.usize(1..8)).map(|_| (self.key(), self.value())).collect();
        self.note(format!(
            "put_many {:?}",
            items.iter().map(|(key, _)| &**key).collect::<Vec<_>>()
        ));
        self.put_all(items).await
    }

    async fn put_all(&mut self, items: Vec<(Key, Bytes)>) -> Result<(), String> {
        let sent = Side::BOTH.map(|_| self.ledger.tick());
        let memory = self.stores[0].put_many(items.clone()).await;
        let nats = self.stores[1].put_many(items.clone()).await;
        let acknowledged = Side::BOTH.map(|_| self.ledger.tick());
        for (((key, value), memory), nats) in items.into_iter().zip(memory).zip(nats) {
            let expected = self.too_large(&value);
            if kind(&memory) != expected || kind(&nats) != expected {
                return Err(format!(
                    "put_many of {key}: {memory:?} and {nats:?}, expected {expected:?}"
                ));
            }
            if let (Ok(memory), Ok(nats)) = (memory, nats) {
                self.expiring.retain(|(expiring, ..)| *expiring != key);
                let write = blank(KvOperation::Put, &value);
                self.ledger
                    .add(&key, Write { versions: [memory, nats], sent, acknowledged, ..write });
            }
        }
        Ok(())
    }

    /// Compares the entries of a key on both sides with the ledger.
    async fn compare_key(&mut self, key: &Key) -> Result<(), String> {
        self.note(format!("read {key}"));
        let newest = self.ledger.newest(key);
        let held = self.ledger.held(key, usize::from(self.plan.history));
        for side in Side::BOTH {
            let store = &self.stores[side.index()];
            let failed = |error: KvError| format!("reading {key} on {side:?}: {error}");
            let entry = store.entry(key.clone()).await.map_err(failed)?;
            let live = store.get(key.clone()).await.map_err(failed)?;
            let many = store.get_many([key.clone(), key.clone()]).await.map_err(failed)?;
            let is_live = newest.as_ref().is_some_and(Write::is_live);
            let expected = newest.as_ref().filter(|_| is_live);
            let answers = [(entry.as_ref(), newest.as_ref()), (live.as_ref(), expected)];
            let answers =
                answers.into_iter().chain(many.iter().map(|found| (found.as_ref(), expected)));
            for (entry, write) in answers {
                if let Some(why) = Ledger::differs(entry, write, side) {
                    return Err(format!("reading {key}: {why}"));
                }
            }
            let history =
                store.history(key.clone()).map_err(failed)?.try_collect().await.map_err(failed)?;
            if history.len() != held.len() {
                return Err(format!(
                    "history of {key} on {side:?}: {history:?}, expected {held:?}"
                ));
            }
            for (entry, write) in history.iter().zip(&held) {
                if let Some(why) = Ledger::differs(Some(entry), Some(write), side) {
                    return Err(format!("history of {key}: {why}"));
                }
            }
        }
        Ok(())
    }

    /// Compares the listings of both sides with the ledger.
    async fn compare_state(&mut self, scope: &WatchScope) -> Result<(), String> {
        self.note(format!("list {scope:?}"));
        let expected = self.ledger.live(scope);
        for side in Side::BOTH {
            let store = &self.stores[side.index()];
            let failed = |error: KvError| format!("listing {scope:?} on {side:?}: {error}");
            let mut entries = store.scan(scope.clone()).try_collect().await.map_err(failed)?;
            let mut keys = store.keys(scope.clone()).try_collect().await.map_err(failed)?;
            entries.sort_by(|one, other| one.key.cmp(&other.key));
            keys.sort();
            if !keys.iter().eq(expected.keys()) {
                return Err(format!(
                    "keys of {scope:?} on {side:?}: {keys:?}, expected {:?}",
                    expected.keys()
                ));
            }
            if !entries.iter().map(|entry| &entry.key).eq(expected.keys()) {
                return Err(format!("scan of {scope:?} on {side:?}: {entries:?}"));
            }
            for (entry, write) in entries.iter().zip(expected.values()) {
                if let Some(why) = Ledger::differs(Some(entry), Some(write), side) {
                    return Err(format!("scan of {scope:?}: {why}"));
                }
            }
        }
        Ok(())
    }

    async fn open_watch(&mut self) -> Result<(), String> {
        if self.watches.len() >= 4 {
            return self.close_watch();
        }
        let scope = self.scope();
        self.note(format!("watch {scope:?}"));
        self.open_watch_of(scope).await
    }

    async fn read_watch(&mut self) -> Result<(), String> {
        let items = self.rng.usize(1..12);
        let Some(pair) = pick(&mut self.rng, &mut self.watches) else { return Ok(()) };
        for watching in pair {
            watching.read(&self.ledger, items, PATIENCE).await?;
        }
        Ok(())
    }

    async fn save_cursor(&mut self) -> Result<(), String> {
        let settles = self.rng.bool();
        self.note(format!("save a cursor (settled: {settles})"));
        let Some(pair) = pick(&mut self.rng, &mut self.watches) else { return Ok(()) };
        if settles {
            for watching in pair.iter_mut() {
                watching.settle(&self.ledger).await?;
            }
        }
        if let [Some(memory), Some(nats)] = [pair[0].saved(settles), pair[1].saved(settles)] {
            self.saved.push([memory, nats]);
        }
        Ok(())
    }

    async fn resume_watch(&mut self) -> Result<(), String> {
        if self.watches.len() >= 4 {
            return self.close_watch();
        }
        let Some(pair) = pick(&mut self.rng, &mut self.saved).cloned() else { return Ok(()) };
        self.note(format!("resume a watch of {:?}", pair[0].scope));
        let mut answers = Vec::new();
        for (side, saved) in Side::BOTH.into_iter().zip(&pair) {
            let resumed =
                Watching::resume(&self.stores[side.index()], side, &self.ledger, saved).await;
            match &resumed {
                Ok(_) | Err(KvError::CursorExpired { .. }) => answers.push(resumed),
                Err(error) => return Err(format!("resuming on {side:?}: {error}")),
            }
        }
        let [memory, nats]: Answers<Watching> =
            answers.try_into().unwrap_or_else(|_| unreachable!());
        // The marker of a narrower watch names the end of the store on one side. On the other side
        // it names the last position at which the watch read it.
        let must_agree = pair[0].is_settled && !self.has_burst && pair[0].scope == WatchScope::All;
        if must_agree && memory.is_ok() != nats.is_ok() {
            return Err(format!("only one side resumes: {:?} and {:?}", memory.err(), nats.err()));
        }
        match (memory, nats) {
            (Ok(memory), Ok(nats)) => self.watches.push([memory, nats]),
            // Checks the other watch alone to its end.
            (Ok(mut one), Err(_)) | (Err(_), Ok(mut one)) => one.settle(&self.ledger).await?,
            (Err(_), Err(_)) => {}
        }
        Ok(())
    }

    fn close_watch(&mut self) -> Result<(), String> {
        if !self.watches.is_empty() {
            let at = self.rng.usize(..self.watches.len());
            self.watches.swap_remove(at);
        }
        Ok(())
    }

    fn open_listing(&mut self) -> Result<(), String> {
        let (scope, keys_only) = (self.scope(), self.rng.bool());
        self.note(format!("open a listing of {scope:?}"));
        self.open_listing_of(scope, keys_only);
        Ok(())
    }

    async fn read_listing(&mut self) -> Result<(), String> {
        let (items, finishes) = (self.rng.usize(1..6), self.rng.bool());
        if self.listings.is_empty() {
            return Ok(());
        }
        let at = self.rng.usize(..self.listings.len());
        if finishes {
            for listing in self.listings.swap_remove(at) {
                listing.finish(&self.ledger).await?;
            }
            return Ok(());
        }
        for listing in &mut self.listings[at] {
            if !listing.is_over() {
                listing.read(&self.ledger, items).await?;
            }
        }
        Ok(())
    }

    /// Starts the replica, or stops it.
    async fn replicate(&mut self) -> Result<(), String> {
        let starts = !self.mirror.is_running();
        self.note(if starts { "the replica starts" } else { "the replica stops" });
        if starts { self.mirror.start().await } else { self.mirror.stop().await }
    }

    /// Writes with several writers at once, each with keys of its own, while watches and listings
    /// are read.
    async fn burst(&mut self) -> Result<(), String> {
        for (key, ..) in self.expiring.clone() {
            self.await_expiry(&key).await?;
        }
        let (writers, writes) = (self.rng.usize(2..5), self.rng.usize(3..20));
        self.note(format!("{writers} writers at once, {writes} writes each"));
        self.has_burst = true;
        let open = self.rng.bool();
        if open {
            self.open_watch().await?;
            self.open_listing()?;
        }
        let seeds: Vec<_> = (0..writers).map(|_| self.rng.u64(..)).collect();
        let writing = join_all(seeds.into_iter().enumerate().map(|(writer, seed)| {
            let keys: Vec<_> = KEYS
                .iter()
                .skip(writer)
                .step_by(writers)
                .map(|key| Key::new(*key).unwrap())
                .collect();
            let (plan, stores, ledger) = (self.plan, self.stores.clone(), Arc::clone(&self.ledger));
            write_alone(plan, stores, ledger, keys, Rng::with_seed(seed), writes)
        }));
        let (ledger, rng) = (&self.ledger, &mut self.rng);
        let (watches, listings) = (&mut self.watches, &mut self.listings);
        let reading = async {
            for _ in 0..writes {
                for watching in watches.iter_mut().flatten() {
                    watching.read(ledger, rng.usize(..4), Duration::from_millis(1)).await?;
                }
                for listing in listings.iter_mut().flatten().filter(|listing| !listing.is_over()) {
                    listing.read(ledger, rng.usize(..3)).await?;
                }
            }
            Ok::<_, String>(())
        };
        let (written, read) = join(writing, reading).await;
        written.into_iter().collect::<Result<Vec<()>, String>>()?;
        read
    }

    /// Writes more keys than a client requests at a time. Readers that pause leave most of them on
    /// the server, and writers then supersede, delete and purge some of the undelivered ones.
    async fn many(&mut self) -> Result<(), String> {
        self.note(format!("{} keys", self.plan.many));
        let keys: Vec<_> =
            (0..self.plan.many).map(|n| Key::new(format!("many.{n}")).unwrap()).collect();
        let value = Bytes::from_static(b"many");
        let items = keys.iter().map(|key| (key.clone(), value.clone())).collect();
        self.put_all(items).await?;
        self.open_listing_of(WatchScope::All, false);
        self.open_listing_of(WatchScope::prefix("many."), true);
        for listing in self.listings.iter_mut().flatten() {
            listing.read(&self.ledger, 10).await?;
        }
        self.open_watch_of(WatchScope::prefix("many.")).await?;
        for watching in self.watches.iter_mut().flatten() {
            watching.read(&self.ledger, 10, Duration::from_secs(5)).await?;
        }
        for _ in 0..self.rng.usize(1..40) {
            let key = keys[self.rng.usize(..keys.len())].clone();
            let times = self.rng.usize(1..4);
            let operation = self.rng.u8(..4);
            for _ in 0..times {
                self.overwrite(&key, operation).await?;
            }
        }
        for listings in std::mem::take(&mut self.listings) {
            for listing in listings {
                listing.finish(&self.ledger).await?;
            }
        }
        for watching in self.watches.iter_mut().flatten() {
            watching.settle(&self.ledger).await?;
        }
        Ok(())
    }

    async fn overwrite(&mut self, key: &Key, operation: u8) -> Result<(), String> {
        let value = self.rng.u64(..).to_string();
        let value = Bytes::from(value);
        let kind = match operation {
            0 => KvOperation::Delete,
            1 => KvOperation::Purge,
            _ => KvOperation::Put,
        };
        let write = match kind {
            KvOperation::Put => blank(kind, &value),
            KvOperation::Purge => blank(self.plan.purged(), &[]),
            _ => blank(kind, &[]),
        };
        self.write(key, write, None, |store, _| {
            let (key, value) = (key.clone(), value.clone());
            async move {
                match kind {
                    KvOperation::Delete => store.delete(key).await,
                    KvOperation::Purge => store.purge(key).await,
                    _ => store.put(key, value).await,
                }
            }
        })
        .await
        .map(drop)
    }

    fn open_listing_of(&mut self, scope: WatchScope, keys_only: bool) {
        let open = |side: Side| {
            Listing::open(&self.stores[side.index()], side, &self.ledger, &scope, keys_only)
        };
        self.listings.push(Side::BOTH.map(open));
    }

    async fn open_watch_of(&mut self, scope: WatchScope) -> Result<(), String> {
        let mut both = Vec::new();
        for side in Side::BOTH {
            let opened =
                Watching::open(&self.stores[side.index()], side, &self.ledger, &scope).await;
            both.push(opened.map_err(|error| format!("watch {scope:?} on {side:?}: {error}"))?);
        }
        self.watches.extend(<[Watching; 2]>::try_from(both));
        Ok(())
    }
}

/// One of several concurrent writers: puts, deletes and purges keys that no other writer has.
async fn write_alone(
    plan: Plan,
    stores: [Store; 2],
    ledger: Arc<Ledger>,
    keys: Vec<Key>,
    mut rng: Rng,
    writes: usize,
) -> Result<(), String> {
    for _ in 0..writes {
        let key = &keys[rng.usize(..keys.len())];
        let value = Bytes::from(rng.u64(..).to_string());
        let operation = match rng.u8(..8) {
            0 => KvOperation::Delete,
            1 => KvOperation::Purge,
            _ => KvOperation::Put,
        };
        let (mut versions, mut sent, mut acknowledged) = (Vec::new(), [0; 2], [0; 2]);
        for side in Side::BOTH {
            let store = &stores[side.index()];
            sent[side.index()] = ledger.tick();
            let answer = match operation {
                KvOperation::Delete => store.delete(key.clone()).await,
                KvOperation::Purge => store.purge(key.clone()).await,
                _ => store.put(key.clone(), value.clone()).await,
            };
            acknowledged[side.index()] = ledger.tick();
            versions.push(
                answer.map_err(|error| format!("{operation:?} of {key} on {side:?}: {error}"))?,
            );
        }
        let versions = versions.try_into().unwrap();
        let write = match operation {
            KvOperation::Put => blank(operation, &value),
            KvOperation::Purge => blank(plan.purged(), &[]),
            _ => blank(operation, &[]),
        };
        ledger.add(key, Write { versions, sent, acknowledged, ..write });
    }
    Ok(())
}

fn blank(operation: KvOperation, value: &[u8]) -> Write {
    let never = VersionToken::from_u64(0);
    Write {
        operation,
        value: Bytes::copy_from_slice(value),
        fence: None,
        versions: [never; 2],
        sent: [0; 2],
        acknowledged: [0; 2],
    }
}

fn pick<'a, T>(rng: &mut Rng, from: &'a mut [T]) -> Option<&'a mut T> {
    if from.is_empty() { None } else { from.get_mut(rng.usize(..from.len())) }
}

/// Returns the name of an error's variant, or `None` for a success.
fn kind<T>(answer: &KvResult<T>) -> Option<&'static str> {
    Some(match answer.as_ref().err()? {
        KvError::AlreadyExists { .. } => "AlreadyExists",
        KvError::RevisionMismatch { .. } => "RevisionMismatch",
        KvError::Fenced { .. } => "Fenced",
        KvError::ValueTooLarge { .. } => "ValueTooLarge",
        _ => "another error",
    })
}
