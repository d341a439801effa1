//! The capabilities that a check needs, and the checks that unclaimed ones are rejected.

use std::time::{Duration, SystemTime};

use super::{CheckResult, Fixture};
use crate::store::{
    ConnectionCapabilities, KvError, ReadConsistency, StoreConfig, VersionToken, WatchCursor,
    WatchScope,
};

/// A field of [`ConnectionCapabilities`] that a check needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// [`ConnectionCapabilities::write`].
    Write,
    /// [`ConnectionCapabilities::compare_and_swap`].
    CompareAndSwap,
    /// [`ConnectionCapabilities::watch`].
    Watch,
    /// [`ConnectionCapabilities::watch_resume`].
    WatchResume,
    /// [`ConnectionCapabilities::ordered_versions`].
    OrderedVersions,
    /// [`ConnectionCapabilities::max_history`] of more than 1.
    History,
    /// [`ConnectionCapabilities::max_age`].
    MaxAge,
    /// [`ConnectionCapabilities::key_ttl`].
    KeyTtl,
    /// [`ConnectionCapabilities::fenced_writes`].
    FencedWrites,
    /// [`ConnectionCapabilities::expiry_events`].
    ExpiryEvents,
    /// [`ConnectionCapabilities::leader_reads`].
    LeaderReads,
    /// [`ConnectionCapabilities::persistent`].
    Persistent,
    /// [`ConnectionCapabilities::shared`].
    Shared,
}

impl Capability {
    /// Returns true if a backend with these capabilities claims this one.
    pub fn is_claimed_by(self, capabilities: &ConnectionCapabilities) -> bool {
        match self {
            Self::Write => capabilities.write,
            Self::CompareAndSwap => capabilities.compare_and_swap,
            Self::Watch => capabilities.watch,
            Self::WatchResume => capabilities.watch_resume,
            Self::OrderedVersions => capabilities.ordered_versions,
            Self::History => capabilities.max_history > 1,
            Self::MaxAge => capabilities.max_age,
            Self::KeyTtl => capabilities.key_ttl,
            Self::FencedWrites => capabilities.fenced_writes,
            Self::ExpiryEvents => capabilities.expiry_events,
            Self::LeaderReads => capabilities.leader_reads,
            Self::Persistent => capabilities.persistent,
            Self::Shared => capabilities.shared,
        }
    }

    /// Checks that a backend that does not claim it rejects requests that need it.
    pub(super) async fn ensure_rejected(self, fixture: &Fixture) -> CheckResult {
        match self {
            Self::Write => writing_is_rejected(fixture).await,
            Self::CompareAndSwap => comparing_and_swapping_is_rejected(fixture).await,
            Self::Watch => {
                let store = fixture.store().await?;
                let watch = store.watch(WatchScope::All).await;
                ensure_error!(watch, KvError::Unsupported { .. }, "watching, which is not claimed");
                Ok(())
            }
            Self::WatchResume => resuming_is_rejected(fixture).await,
            Self::History => {
                opening_is_rejected(fixture, fixture.config().history(2), "a history of 2").await
            }
            Self::MaxAge => {
                let config = fixture.config().max_age(Duration::from_secs(60));
                opening_is_rejected(fixture, config, "a maximum age").await
            }
            Self::KeyTtl => {
                let store = fixture.store().await?;
                ensure!(
                    store.ttl().is_none(),
                    "times to live are not claimed, but the store has them"
                );
                let config = fixture.config().key_ttl(true);
                opening_is_rejected(fixture, config, "times to live of single keys").await
            }
            Self::FencedWrites => {
                let store = fixture.store().await?;
                ensure!(
                    store.fenced().is_none(),
                    "fenced writes are not claimed, but the store has them"
                );
                Ok(())
            }
            Self::LeaderReads => {
                let config = fixture.config().consistency(ReadConsistency::Leader);
                opening_is_rejected(fixture, config, "leader reads").await
            }
            // No request needs these, so nothing can be rejected.
            Self::OrderedVersions | Self::ExpiryEvents | Self::Persistent | Self::Shared => Ok(()),
        }
    }
}

async fn opening_is_rejected(fixture: &Fixture, config: StoreConfig, with: &str) -> CheckResult {
    let name = fixture.fresh_name();
    let opened = fixture.connection().store_with_config(&name, config).await;
    ensure_error!(
        opened,
        KvError::Unsupported { .. },
        "opening a store with {with}, which is not claimed"
    );
    Ok(())
}

async fn writing_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    ensure_error!(
        store.put("key", "value").await,
        KvError::Unsupported { .. },
        "put, which is not claimed"
    );
    ensure_error!(
        store.delete("key").await,
        KvError::Unsupported { .. },
        "delete, which is not claimed"
    );
    ensure_error!(
        store.purge("key").await,
        KvError::Unsupported { .. },
        "purge, which is not claimed"
    );
    for answer in store.put_many([("a", "1"), ("b", "2")]).await {
        ensure_error!(answer, KvError::Unsupported { .. }, "put_many, which is not claimed");
    }
    Ok(())
}

async fn comparing_and_swapping_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version = VersionToken::from_u64(1);
    let create = store.create("key", "value").await;
    ensure_error!(create, KvError::Unsupported { .. }, "create, which is not claimed");
    let update = store.update("key", "value", version).await;
    ensure_error!(update, KvError::Unsupported { .. }, "update, which is not claimed");
    let delete = store.delete_with_version("key", version).await;
    ensure_error!(delete, KvError::Unsupported { .. }, "delete_with_version, which is not claimed");
    Ok(())
}

async fn resuming_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let cursor = WatchCursor::new([0; 16], 1, SystemTime::now());
    let first = match store.watch_from(WatchScope::All, cursor).await {
        Ok(watch) => watch.next().await.transpose(),
        Err(error) => Err(error),
    };
    ensure_error!(first, KvError::Unsupported { .. }, "watch_from, which is not claimed");
    Ok(())
}
