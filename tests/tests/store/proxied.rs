//! Two clients of one store on NATS, of which one is behind a proxy that loses messages.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use shizuku_kv::{KvOperation, KvResult, Store, StoreConfig, VersionToken, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually};

/// One client behind the proxy, and one beside it that sees the actual content.
pub(super) struct Proxied {
    pub(super) server: NatsServer,
    pub(super) proxy: TcpProxy,
    pub(super) behind: Store,
    pub(super) direct: Store,
}

impl Proxied {
    pub(super) async fn new(history: u8) -> Self {
        let server = NatsServer::start();
        let proxy = TcpProxy::start(server.port()).await;
        let config = StoreConfig::new().history(history).deadline(Duration::from_secs(10));
        let direct = connect(&server.url()).await.unwrap();
        let direct = direct.store_with_config("b", config.clone()).await.unwrap();
        let behind = connect(&proxy.url()).await.unwrap();
        let behind = behind.store_with_config("b", config).await.unwrap();
        Self { server, proxy, behind, direct }
    }

    /// Returns the entries of a key with their fencing tokens.
    pub(super) async fn entries(&self, key: &str) -> Vec<(u64, KvOperation, Option<u64>)> {
        let entries = self.direct.history(key).unwrap().try_collect().await.unwrap();
        let shape = |entry: &shizuku_kv::KvEntry| {
            let fence = entry.fence.map(shizuku_kv::FencingToken::as_u64);
            (entry.version.as_u64().unwrap(), entry.operation, fence)
        };
        entries.iter().map(shape).collect()
    }

    /// Waits until the server has a new entry of the key.
    pub(super) async fn has_write(&self, key: &str, before: Option<VersionToken>) {
        eventually("the server has the write", async || self.version(key).await != before).await;
    }

    pub(super) async fn version(&self, key: &str) -> Option<VersionToken> {
        self.direct.entry(key).await.unwrap().map(|entry| entry.version)
    }
}

/// Lets a write that is in transit run as far as it can without an answer.
pub(super) async fn send() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

pub(super) fn version(result: KvResult<VersionToken>) -> u64 {
    result.unwrap().as_u64().unwrap()
}
