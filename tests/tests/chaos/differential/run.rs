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

/// Time to live of some values.
const TTL: Duration = Duration::from_secs(3);

/// A value that expires is overwritten or awaited before this age, so that no operation meets it
/// while it expires, even one that takes a second.
const SURELY_ALIVE: Duration = Duration::from_secs(1);

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

/// A write of one key. Expected versions are those of both sides.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Put,
    Create,
    Update([VersionToken; 2]),
    Delete,
    DeleteVersion([VersionToken; 2]),
    Purge,
    FencedPut(FencingToken),
    FencedDelete(FencingToken),
    PutWithTtl,
}

impl Kind {
    fn deletes(self) -> bool {
        matches!(self, Self::Delete | Self::DeleteVersion(_) | Self::Purge | Self::FencedDelete(_))
    }

    async fn write(
        self,
        store: &Store,
        side: Side,
        key: &Key,
        value: &Bytes,
    ) -> KvResult<VersionToken> {
        let fenced = || store.fenced().expect("neither store loses entries by itself");
        let (key, value) = (key.clone(), value.clone());
        match self {
            Self::Put => store.put(key, value).await,
            Self::Create => store.create(key, value).await,
            Self::Update(versions) => store.update(key, value, versions[side.index()]).await,
            Self::Delete => store.delete(key).await,
            Self::DeleteVersion(versions) => {
                store.delete_with_version(key, versions[side.index()]).await
            }
            Self::Purge => store.purge(key).await,
            Self::FencedPut(token) => fenced().put(key, value, token).await,
            Self::FencedDelete(token) => fenced().delete(key, token).await,
            Self::PutWithTtl => {
                store.ttl().expect("the store has times to live").put(key, value, TTL).await
            }
        }
    }

    /// Returns the entry that this write leaves, without its versions and times.
    fn blank(self, plan: Plan, value: &[u8]) -> Write {
        let write = match self {
            Self::Purge => blank(plan.purged(), &[]),
            _ if self.deletes() => blank(KvOperation::Delete, &[]),
            _ => blank(KvOperation::Put, value),
        };
        let fence = match self {
            Self::FencedPut(token) | Self::FencedDelete(token) => Some(token),
            _ => None,
        };
        Write { fence, ..write }
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
        let key = self.key();
        let kind = match self.rng.u8(..100) {
            0..24 => Kind::Put,
            24..30 => Kind::Create,
            30..38 => Kind::Update(self.version(&key)),
            38..42 => Kind::Delete,
            42..46 => Kind::DeleteVersion(self.version(&key)),
            46..51 => Kind::Purge,
            51..54 => return self.put_many().await,
            54..56 => Kind::FencedPut(self.token()),
            56..58 => Kind::FencedDelete(self.token()),
            58..61 if self.plan.key_ttl && self.expiring.is_empty() => Kind::PutWithTtl,
            58..61 => Kind::Put,
            61..66 => return self.compare_key(&key).await,
            66..69 => {
                let scope = self.scope();
                return self.compare_state(&scope).await;
            }
            69..75 => return self.open_watch().await,
            75..82 => return self.read_watch().await,
            82..85 => return self.save_cursor().await,
            85..89 => return self.resume_watch().await,
            89..91 => return self.close_watch(),
            91..94 => return self.open_listing(),
            94..98 => return self.read_listing().await,
            98 => return self.burst().await,
            _ => return self.replicate().await,
        };
        let value = self.value();
        self.note(format!("{kind:?} of {key} ({} bytes)", value.len()));
        self.write(&key, kind, value).await
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

    /// Makes a write on both sides, compares the results with each other and with the ledger, and
    /// records a success.
    async fn write(&mut self, key: &Key, kind: Kind, value: Bytes) -> Result<(), String> {
        let expected = self.expected(key, kind, &value);
        let (written_at, sent) = (Instant::now(), Side::BOTH.map(|_| self.ledger.tick()));
        let (mut versions, mut acknowledged) = (Vec::new(), sent);
        for side in Side::BOTH {
            let answer = kind.write(&self.stores[side.index()], side, key, &value).await;
            acknowledged[side.index()] = self.ledger.tick();
            if name(&answer) != expected {
                return Err(format!("{side:?} answered {answer:?}, expected {expected:?}"));
            }
            versions.extend(answer);
        }
        let Ok(versions) = versions.try_into() else { return Ok(()) };
        self.expiring.retain(|(expiring, ..)| expiring != key);
        if matches!(kind, Kind::PutWithTtl) {
            self.expiring.push((key.clone(), sent[0], written_at));
        }
        let write = kind.blank(self.plan, &value);
        self.ledger.add(key, Write { versions, sent, acknowledged, ..write });
        Ok(())
    }

    /// Returns the error that a write causes, if any.
    fn expected(&self, key: &Key, kind: Kind, value: &Bytes) -> Option<&'static str> {
        let newest = self.ledger.newest(key);
        let is_other = |versions| newest.as_ref().is_none_or(|newest| newest.versions != versions);
        let too_large = self.too_large(value).filter(|_| !kind.deletes());
        too_large.or(match kind {
            Kind::Create if newest.as_ref().is_some_and(Write::is_live) => Some("AlreadyExists"),
            Kind::Update(versions) | Kind::DeleteVersion(versions) if is_other(versions) => {
                Some("RevisionMismatch")
            }
            Kind::FencedPut(token) | Kind::FencedDelete(token)
                if newest.as_ref().and_then(|newest| newest.fence) > Some(token) =>
            {
                Some("Fenced")
            }
            _ => None,
        })
    }

    /// Returns the error caused by the size of a value, if any.
    fn too_large(&self, value: &Bytes) -> Option<&'static str> {
        (self.plan.limits_size && value.len() > LARGEST).then_some("ValueTooLarge")
    }

    /// Returns a version to expect: the newest, an older one, another key's, or one that never
    /// existed.
    fn version(&mut self, key: &Key) -> [VersionToken; 2] {
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
        pick.map_or(never, |write| write.versions)
    }

    fn token(&mut self) -> FencingToken {
        FencingToken::from_u64(self.rng.u64(1..6))
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
        let write = blank(KvOperation::Expire, &[]);
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
            if name(&memory) != expected || name(&nats) != expected {
                return Err(format!(
                    "put_many of {key}: {memory:?} and {nats:?}, expected {expected:?}"
                ));
            }
            if let (Ok(memory), Ok(nats)) = (memory, nats) {
                self.expiring.retain(|(expiring, ..)| *expiring != key);
                let write = Kind::Put.blank(self.plan, &value);
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
            let kind = [Kind::Delete, Kind::Purge, Kind::Put, Kind::Put][self.rng.usize(..4)];
            for _ in 0..times {
                let value = Bytes::from(self.rng.u64(..).to_string());
                self.write(&key, kind, value).await?;
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
        let kind = match rng.u8(..8) {
            0 => Kind::Delete,
            1 => Kind::Purge,
            _ => Kind::Put,
        };
        let (mut versions, mut sent, mut acknowledged) = (Vec::new(), [0; 2], [0; 2]);
        for side in Side::BOTH {
            sent[side.index()] = ledger.tick();
            let answer = kind.write(&stores[side.index()], side, key, &value).await;
            acknowledged[side.index()] = ledger.tick();
            versions
                .push(answer.map_err(|error| format!("{kind:?} of {key} on {side:?}: {error}"))?);
        }
        let (versions, write) = (versions.try_into().unwrap(), kind.blank(plan, &value));
        ledger.add(key, Write { versions, sent, acknowledged, ..write });
    }
    Ok(())
}

fn pick<'a, T>(rng: &mut Rng, from: &'a mut [T]) -> Option<&'a mut T> {
    if from.is_empty() { None } else { from.get_mut(rng.usize(..from.len())) }
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

/// Returns the name of an error's variant, or `None` for a success.
fn name<T>(answer: &KvResult<T>) -> Option<&'static str> {
    Some(match answer.as_ref().err()? {
        KvError::AlreadyExists { .. } => "AlreadyExists",
        KvError::RevisionMismatch { .. } => "RevisionMismatch",
        KvError::Fenced { .. } => "Fenced",
        KvError::ValueTooLarge { .. } => "ValueTooLarge",
        _ => "another error",
    })
}
