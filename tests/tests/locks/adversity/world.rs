//! A store, processes that each reach it in their own way, and a handle that reaches the store
//! without faults.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockOptions, LockState, WriteGuard};
use shizuku_kv::{Connection, KvEntry, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::faulty::FaultyStore;
use shizuku_kv_tests::{NatsServer, unique};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::adversity::faults::Faults;
use crate::adversity::store::Backend;

/// Lease that survives a stall of the machine for a few seconds, because sessions also count the
/// time of the real clock, which a paused one does not stop. Tests measure time in leases.
pub(crate) const LEASE: Duration = Duration::from_secs(4);

/// Lease for tests in memory that take long themselves.
pub(crate) const STEADY_LEASE: Duration = Duration::from_secs(600);

/// Key of the lock's record.
pub(crate) const RECORD: &str = "rw_lock.r";

/// Timeout for everything that has to happen.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) connection: Arc<dyn Connection>,
    pub(crate) name: String,
    is_on_nats: bool,
    /// Reaches the store without faults.
    pub(crate) observer: Store,
}

impl World {
    pub(crate) async fn in_memory() -> Self {
        Self::of("memory:", StoreConfig::new()).await
    }

    pub(crate) async fn in_memory_with(config: StoreConfig) -> Self {
        Self::of("memory:", config).await
    }

    pub(crate) async fn on_nats() -> Self {
        let url = NatsServer::shared().url();
        Self { is_on_nats: true, ..Self::of(&url, StoreConfig::new()).await }
    }

    async fn of(url: &str, config: StoreConfig) -> Self {
        let (connection, name) = (connect(url).await.unwrap(), unique("locks"));
        let observer = connection.store_with_config(&name, config).await.unwrap();
        Self { connection, name, is_on_nats: false, observer }
    }

    /// Returns processes that share nothing except the store.
    pub(crate) async fn processes<const N: usize>(&self) -> [Process; N] {
        let mut processes = Vec::new();
        for _ in 0..N {
            processes.push(Process::over(&self.connection.store(&self.name).await.unwrap()));
        }
        processes.try_into().unwrap_or_else(|_| panic!("as many as were made"))
    }

    pub(crate) async fn state(&self) -> LockState {
        DistroRwLock::new(&self.observer, "r").unwrap().inspect().await.unwrap()
    }

    /// Returns the key of the session of the first holder.
    pub(crate) async fn key_of_holder(&self) -> String {
        format!("rw_lock_session.{}", self.state().await.holders[0].claim.session)
    }

    /// Returns the keys of the live sessions.
    pub(crate) async fn sessions(&self) -> Vec<String> {
        let keys =
            self.observer.keys(WatchScope::prefix("rw_lock_session.")).try_collect().await.unwrap();
        keys.iter().map(ToString::to_string).collect()
    }

    /// Returns the present record.
    pub(crate) async fn record(&self) -> Option<KvEntry> {
        self.observer.entry(RECORD).await.unwrap()
    }

    /// Waits until this many are queued.
    pub(crate) async fn in_line(&self, number: usize) {
        self.until("they are queued", |state| state.waiting.len() == number).await;
    }

    /// Waits until this many hold the lock, and none waits.
    pub(crate) async fn held_by(&self, number: usize) {
        self.until("no other claim is left", |state| {
            (state.holders.len(), state.waiting.len()) == (number, 0)
        })
        .await;
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&LockState) -> bool) {
        let look = async {
            while !holds(&self.state().await) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        if timeout(PATIENCE, look).await.is_err() {
            panic!("not so within {PATIENCE:?}: {what}: {:?}", self.state().await);
        }
    }

    /// Deletes and recreates the store. The processes continue with it under its name, as the
    /// handles of a server do by themselves.
    pub(crate) async fn recreate(&mut self, processes: &[&Process]) {
        self.connection.delete_store(&self.name).await.unwrap();
        self.observer = self.connection.store(&self.name).await.unwrap();
        for process in processes.iter().filter(|_| !self.is_on_nats) {
            process.backend.switch_to(&self.observer);
        }
    }
}

pub(crate) struct Process {
    pub(crate) store: Store,
    pub(crate) faults: Arc<Faults>,
    pub(crate) backend: Arc<Backend>,
}

impl Process {
    fn over(store: &Store) -> Self {
        let faults = Arc::<Faults>::default();
        let backend = Backend::over(store, &faults);
        let handle = FaultyStore::over(store, &backend).with_deadline(Duration::from_secs(2));
        Self { store: handle, faults, backend }
    }

    pub(crate) fn lock(&self) -> DistroRwLock {
        self.lock_for(LEASE)
    }

    pub(crate) fn lock_for(&self, lease: Duration) -> DistroRwLock {
        lock_of(&self.store, "r", lease)
    }

    /// Keeps a session alive, whatever happens to claims of the other lock.
    pub(crate) async fn stay_alive(&self) -> WriteGuard {
        let name = unique("another");
        lock_of(&self.store, &name, LEASE).write().await.unwrap()
    }

    /// Acquires the lock before long, and releases it.
    pub(crate) async fn is_granted(&self, after: &str) {
        let guard =
            within(5, &format!("it is granted after {after}"), self.lock().write()).await.unwrap();
        assert!(guard.is_held());
        guard.release().await.unwrap();
    }

    pub(crate) fn start_waiting(&self) -> JoinHandle<Result<WriteGuard, DistroRwLockError>> {
        self.start_waiting_for(LEASE)
    }

    pub(crate) fn start_waiting_for(
        &self,
        lease: Duration,
    ) -> JoinHandle<Result<WriteGuard, DistroRwLockError>> {
        let lock = self.lock_for(lease);
        tokio::spawn(async move { lock.write().await })
    }
}

pub(crate) fn lock_of(store: &Store, resource: &str, lease: Duration) -> DistroRwLock {
    let options = LockOptions::new().lease(lease).wait(60 * lease);
    DistroRwLock::with_options(store, resource, options).unwrap()
}

/// Awaits a future that has to end within this many leases.
pub(crate) async fn within<T>(leases: u32, what: &str, future: impl Future<Output = T>) -> T {
    match timeout(leases * LEASE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not so within {leases} leases: {what}"),
    }
}

/// Advances the clock, which otherwise stands still.
pub(crate) async fn pass(time: Duration) {
    sleep(time).await;
}
