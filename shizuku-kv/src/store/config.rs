//! Settings of a store, and of a handle that opens it.

use std::time::Duration;

use super::{ConfigDifference, Deadline, KvError, grammar};

/// Location of a store's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageType {
    /// On disk.
    #[default]
    File,
    /// In the server's memory. The values are lost if the server restarts.
    Memory,
}

/// Consistency of reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReadConsistency {
    /// Any replica may answer. In a cluster a read can miss a write that was acknowledged a moment
    /// before, this client's own included. On a single server it does not. Mirrors of the store
    /// never answer. On NATS the leader is asked before a single read reports a key as absent. Such
    /// a read therefore takes two requests.
    #[default]
    Any,
    /// The leader answers, so that on a healthy cluster a store reads its own writes. During a
    /// partition, a replaced leader that does not know that yet can still answer with its older
    /// state.
    Leader,
}

/// Settings of a store, and of this handle.
///
/// A setting that is not made takes the backend's default when the store is created. It is not
/// compared if the store exists. If an existing store differs in a setting that was made, opening
/// it returns [`KvError::ConfigMismatch`], unless [`reconcile`](Self::reconcile) was requested.
///
/// ```
/// use std::time::Duration;
/// use shizuku_kv::{ReadConsistency, StoreConfig};
///
/// let config = StoreConfig::new()
///     .history(5)
///     .max_value_size(64 * 1024)
///     .consistency(ReadConsistency::Leader)
///     .deadline(Duration::from_secs(2));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct StoreConfig {
    /// Set by [`description`](Self::description()).
    pub description: Option<String>,
    /// Set by [`history`](Self::history()).
    pub history: Option<u8>,
    /// Set by [`max_value_size`](Self::max_value_size()). `Some(None)` is a setting too: no limit.
    pub max_value_size: Option<Option<usize>>,
    /// Set by [`max_bytes`](Self::max_bytes()). `Some(None)` is a setting too: no limit.
    pub max_bytes: Option<Option<u64>>,
    /// Set by [`max_age`](Self::max_age()). `Some(None)` is a setting too: no limit.
    pub max_age: Option<Option<Duration>>,
    /// Set by [`key_ttl`](Self::key_ttl()).
    pub key_ttl: Option<bool>,
    /// Set by [`storage`](Self::storage()).
    pub storage: Option<StorageType>,
    /// Set by [`replicas`](Self::replicas()).
    pub replicas: Option<usize>,
    /// Set by [`consistency`](Self::consistency()).
    pub consistency: ReadConsistency,
    /// Set by [`deadline`](Self::deadline()).
    pub deadline: Option<Duration>,
    /// Set by [`reconcile`](Self::reconcile()).
    pub reconcile: bool,
    /// Set by [`must_exist`](Self::must_exist()).
    pub must_exist: bool,
}

/// Settings of the store itself, and those of the handle.
impl StoreConfig {
    /// Creates settings with nothing set: opens the store, or creates it with the backend's
    /// defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a description for people.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Sets the number of versions of each key that the store keeps, tombstones included: 1 (the
    /// default) to 64.
    pub fn history(mut self, versions: u8) -> Self {
        self.history = Some(versions);
        self
    }

    /// Sets the maximum size of a value in bytes, at least 1. The default is the largest value that
    /// the backend accepts. `None` requests that, and removes a limit with
    /// [`reconcile`](Self::reconcile).
    ///
    /// On NATS the headers of a message count too, for every client. A put of a value of this size
    /// succeeds. A compare-and-swap needs about 60 bytes of the limit for headers, a fenced write
    /// 160, a deletion 32.
    pub fn max_value_size(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.max_value_size = Some(bytes.into());
        self
    }

    /// Sets the maximum size of the store in bytes, as the backend counts them, at least 1. On
    /// `memory:` and `file:` these are the bytes of keys and values. A write beyond it is
    /// [`KvError::StoreFull`]. The default is no limit. `None` requests that, and
    /// removes a limit with [`reconcile`](Self::reconcile).
    pub fn max_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_bytes = Some(bytes.into());
        self
    }

    /// Sets the maximum age of a value, counted from its write: at least 100 ms. By default, values
    /// do not expire. `None` requests that, and removes a maximum age with
    /// [`reconcile`](Self::reconcile).
    ///
    /// If the backend supports it, expiry then leaves a tombstone and arrives at watches (see
    /// [`ConnectionCapabilities::expiry_events`](crate::ConnectionCapabilities::expiry_events)).
    /// Such a store has no [fenced writes](crate::Store::fenced). Removing the age restores them.
    /// The tokens of entries that had expired before that are lost.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), shizuku_kv::KvError> {
    /// # use std::time::Duration;
    /// use shizuku_kv::StoreConfig;
    ///
    /// # let connection = shizuku_kv::connect("memory:").await?;
    /// let config = StoreConfig::new().max_age(Duration::from_secs(60));
    /// let store = connection.store_with_config("events", config).await?;
    /// assert!(store.fenced().is_none());
    ///
    /// let config = StoreConfig::new().max_age(None).reconcile();
    /// let store = connection.store_with_config("events", config).await?;
    /// assert!(store.fenced().is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.max_age = Some(age.into());
        self
    }

    /// Sets whether single keys can be given a time to live, through
    /// [`Store::ttl`](crate::Store::ttl). Off by default. It needs a history of 1: with more, the
    /// previous value would come back when the newest expires.
    ///
    /// A bucket of NATS with a maximum age does not show whether times to live were requested. This
    /// applies if another client created it, or this library without this setting. A handle then
    /// has them if it is opened with this setting. With [`reconcile`](Self::reconcile()) every
    /// handle has them.
    pub fn key_ttl(mut self, enabled: bool) -> Self {
        self.key_ttl = Some(enabled);
        self
    }

    /// Sets the location of the values. A backend with only one location (`memory:`, `file:`)
    /// records this setting without an effect.
    pub fn storage(mut self, storage: StorageType) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Sets the number of servers of a cluster that keep the store: 1 (the default) to 5. A backend
    /// without a server (`memory:`, `file:`) records this setting without an effect.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = Some(replicas);
        self
    }

    /// Sets the consistency of this handle's reads. It is not a setting of the store: each handle
    /// has its own.
    pub fn consistency(mut self, consistency: ReadConsistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Sets the deadline of each operation of this handle, more than zero; the default is 5
    /// seconds. It is not a setting of the store.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Changes an existing store to these settings, instead of rejecting a store that differs. If
    /// the backend cannot change a setting of an existing store, opening it still returns
    /// [`KvError::ConfigMismatch`].
    pub fn reconcile(mut self) -> Self {
        self.reconcile = true;
        self
    }

    /// Opens the store only if it exists. Otherwise opening it returns [`KvError::StoreNotFound`].
    pub fn must_exist(mut self) -> Self {
        self.must_exist = true;
        self
    }
}

/// Methods for authors of backends.
impl StoreConfig {
    /// Returns the deadline of each operation: the one that was set, or the default.
    pub fn operation_deadline(&self) -> Duration {
        self.deadline.unwrap_or(Deadline::DEFAULT)
    }

    /// Rejects settings that cannot work on any backend.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidConfig`], which names the setting.
    pub fn validate(&self) -> Result<(), KvError> {
        let reject =
            |field, reason: &str| Err(KvError::InvalidConfig { field, reason: reason.to_owned() });
        if self.history.is_some_and(|versions| !(1..=64).contains(&versions)) {
            return reject("history", "between 1 and 64 versions can be kept");
        }
        if self
            .max_value_size
            .flatten()
            .is_some_and(|bytes| bytes == 0 || i32::try_from(bytes).is_err())
        {
            return reject("max_value_size", "between 1 byte and 2 GiB");
        }
        if self.max_bytes.flatten().is_some_and(|bytes| bytes == 0 || i64::try_from(bytes).is_err())
        {
            return reject("max_bytes", "between 1 byte and 2^63 - 1");
        }
        if self.max_age.flatten().is_some_and(|age| {
            age < Duration::from_millis(100) || i64::try_from(age.as_nanos()).is_err()
        }) {
            return reject("max_age", "between 100 ms and 292 years");
        }
        if self.replicas.is_some_and(|replicas| !(1..=5).contains(&replicas)) {
            return reject("replicas", "between 1 and 5");
        }
        if self.key_ttl == Some(true) && self.history.is_some_and(|versions| versions > 1) {
            return reject(
                "key_ttl",
                "needs a history of 1: with more, an older value comes back when the newest expires",
            );
        }
        if self.deadline == Some(Duration::ZERO) {
            return reject("deadline", "must be more than zero");
        }
        Ok(())
    }

    /// Returns each setting that was made here and differs in `found`, the configuration of an
    /// existing store with every field filled in.
    pub fn differences(&self, found: &Self) -> Vec<ConfigDifference> {
        fn compare<T: PartialEq + std::fmt::Debug>(
            out: &mut Vec<ConfigDifference>,
            field: &'static str,
            wanted: &Option<T>,
            found: &Option<T>,
        ) {
            if let Some(value) = wanted
                && wanted != found
            {
                out.push(match found {
                    Some(found) => ConfigDifference::new(field, value, found),
                    None => ConfigDifference::new(field, value, format_args!("not set")),
                });
            }
        }
        /// Compares limits. A limit that `found` lacks was not set.
        fn compare_limit<T: PartialEq + std::fmt::Debug>(
            out: &mut Vec<ConfigDifference>,
            field: &'static str,
            wanted: Option<&Option<T>>,
            found: Option<&T>,
        ) {
            let text = |limit: Option<&T>| {
                limit.map_or_else(|| "no limit".to_owned(), |limit| format!("{limit:?}"))
            };
            if let Some(wanted) = wanted.map(Option::as_ref)
                && wanted != found
            {
                out.push(ConfigDifference::new(
                    field,
                    format_args!("{}", text(wanted)),
                    format_args!("{}", text(found)),
                ));
            }
        }
        fn found_limit<T>(found: &Option<Option<T>>) -> Option<&T> {
            found.as_ref().and_then(Option::as_ref)
        }
        let mut out = Vec::new();
        compare(&mut out, "description", &self.description, &found.description);
        compare(&mut out, "history", &self.history, &found.history);
        compare_limit(
            &mut out,
            "max_value_size",
            self.max_value_size.as_ref(),
            found_limit(&found.max_value_size),
        );
        compare_limit(
            &mut out,
            "max_bytes",
            self.max_bytes.as_ref(),
            found_limit(&found.max_bytes),
        );
        compare_limit(&mut out, "max_age", self.max_age.as_ref(), found_limit(&found.max_age));
        compare(&mut out, "key_ttl", &self.key_ttl, &found.key_ttl);
        compare(&mut out, "storage", &self.storage, &found.storage);
        compare(&mut out, "replicas", &self.replicas, &found.replicas);
        out
    }

    /// Returns these settings, with those of `base` for settings that were not made. The handle's
    /// settings stay unchanged.
    pub fn over(mut self, base: &Self) -> Self {
        self.description = self.description.or_else(|| base.description.clone());
        self.history = self.history.or(base.history);
        self.max_value_size = self.max_value_size.or(base.max_value_size);
        self.max_bytes = self.max_bytes.or(base.max_bytes);
        self.max_age = self.max_age.or(base.max_age);
        self.key_ttl = self.key_ttl.or(base.key_ttl);
        self.storage = self.storage.or(base.storage);
        self.replicas = self.replicas.or(base.replicas);
        self
    }
}

/// Checks the name of a store: 1 to 64 characters of `[A-Za-z0-9_-]`, the same on every backend.
///
/// # Errors
/// Returns [`KvError::InvalidStoreName`] if it is not a valid name.
pub fn check_store_name(name: &str) -> Result<(), KvError> {
    grammar::check_store_name(name).map_err(|fault| KvError::InvalidStoreName {
        name: name.chars().take(80).collect(),
        reason: fault.reason,
    })
}
