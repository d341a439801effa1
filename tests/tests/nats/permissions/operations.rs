//! Every operation that the tables name, with its denied subject.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::replica::{Batch, CancellationToken, MemoryStorage};
use shizuku_kv::rw_lock::DistroRwLock;
use shizuku_kv::{
    BatchConfig, Connection, FencingToken, KeyValue, KvUpdate, LiveStatic, NatsConnection,
    NatsConnectionConfig, ReadConsistency, StaticKeyIndexedValue, Store, StoreConfig, VersionToken,
    WatchScope, nats_connect, watch_applied,
};
use shizuku_kv_tests::NatsServer;

use super::rights::{PATIENCE, at_once, config_of};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "part.live", codec = json)]
pub(crate) struct Setting {
    pub(crate) size: u32,
}

/// Returns a bucket `x` as the administrator has filled it.
pub(crate) async fn prepared(server: &NatsServer) -> (NatsConnection, Store) {
    prepared_by(&config_of(server, "admin")).await
}

async fn prepared_by(admin: &NatsConnectionConfig) -> (NatsConnection, Store) {
    let admin = nats_connect(admin.clone()).await.unwrap();
    let store = admin.store_with_config("x", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
    for key in ["part.a.1", "part.a.2", "part.b.1", "other"] {
        store.put(key, "value").await.unwrap();
    }
    Setting { size: 7 }.write_to_anyway(&store).await.unwrap();
    (admin, store)
}

/// Returns the outcomes of the operations. Leaves out those that cannot begin.
pub(crate) async fn outcomes(
    server: &NatsServer,
    admin_config: &NatsConnectionConfig,
    app_config: &NatsConnectionConfig,
    operations: &[String],
) -> BTreeMap<String, Result<(), String>> {
    let (admin, _) = prepared_by(admin_config).await;
    let mut outcomes = BTreeMap::new();
    let connected = at_once("connect", nats_connect(app_config.clone())).await;
    let mut note = |operation: &str, outcome: Outcome| {
        let outcome = outcome.map_err(|error| chain(&*error));
        outcomes.insert(operation.to_owned(), outcome);
    };
    let app = match connected {
        Ok(app) => app,
        Err(error) => {
            note("connect", Err(error.into()));
            return outcomes;
        }
    };
    note("connect", Ok(()));
    let managing = ["health", "create store", "change store", "delete store", "list stores"];
    for operation in operations.iter().filter(|operation| managing.contains(&operation.as_str())) {
        note(operation, at_once(operation, manage(&admin, &app, operation)).await);
    }
    prepared_by(admin_config).await;
    let store =
        at_once("open", app.store_with_config("x", StoreConfig::new().deadline(PATIENCE))).await;
    match store {
        Err(error) => note("open", Err(error.into())),
        Ok(store) => {
            note("open", Ok(()));
            let others = |operation: &&String| {
                !managing.contains(&operation.as_str())
                    && !matches!(operation.as_str(), "connect" | "open")
            };
            for operation in operations.iter().filter(others) {
                note(
                    operation,
                    at_once(operation, use_store(server, &app, &store, operation)).await,
                );
            }
        }
    }
    outcomes
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

async fn manage(admin: &NatsConnection, app: &NatsConnection, operation: &str) -> Outcome {
    let config = || StoreConfig::new().deadline(PATIENCE);
    match operation {
        "health" => app.health().await?,
        "create store" => {
            admin.delete_store("x").await?;
            app.store_with_config("x", config()).await?;
        }
        "change store" => {
            admin.store_with_config("x", config().description("before").reconcile()).await?;
            app.store_with_config("x", config().description("after").reconcile()).await?;
        }
        "delete store" => {
            admin.store("x").await?;
            app.delete_store("x").await?;
        }
        "list stores" => assert!(app.list_stores().try_collect().await?.len() < 2),
        other => panic!("no operation {other:?}"),
    }
    Ok(())
}

/// Returns true if a page of the server's monitoring shows a consumer.
async fn use_store(
    server: &NatsServer,
    app: &NatsConnection,
    store: &Store,
    operation: &str,
) -> Outcome {
    let part = || WatchScope::prefix("part.");
    match operation {
        "get" => {
            assert!(store.get("part.a.1").await?.is_some());
            assert!(store.get("part.absent").await?.is_none());
            let many = ["part.a.1", "part.absent", "part.a.2", "part.b.1", "part.none"];
            let found = store.get_many(many).await?;
            let there: Vec<_> = found.iter().map(Option::is_some).collect();
            assert_eq!(there, [true, false, true, true, false]);
        }
        "leader read" => {
            let leader = StoreConfig::new().deadline(PATIENCE).consistency(ReadConsistency::Leader);
            let store = app.store_with_config("x", leader).await?;
            assert!(store.get("part.a.1").await?.is_some());
        }
        "scan" => {
            assert_eq!(store.scan(part()).try_collect().await?.len(), 4);
            assert_eq!(store.keys(part()).try_collect().await?.len(), 4);
        }
        "exact keys" => {
            assert_eq!(store.keys(WatchScope::key("part.a.1")?).try_collect().await?.len(), 1);
            let many = ["part.a.1", "part.missing", "part.a.2", "part.b.1", "part.none"];
            assert_eq!(store.scan(WatchScope::keys(many)?).try_collect().await?.len(), 3);
        }
        "history" => assert_eq!(store.history("part.a.1")?.try_collect().await?.len(), 1),
        "watch" => {
            let last = watched(store, part(), 4).await?;
            assert!(last.is_some());
            watched(store, WatchScope::key("part.a.1")?, 1).await?;
        }
        "several scopes" => {
            watched(store, WatchScope::prefixes(["part.a.", "part.b."]), 3).await?;
            watched(store, WatchScope::keys(["part.a.1", "part.b.1"])?, 2).await?;
        }
        "clean up" => {
            // Without the right to watch there is nothing to clean up.
            let _ = watched(store, part(), 4).await;
            let look =
                async || server.page("/jsz").await.is_some_and(|page| page["consumers"] == 0);
            // Once a deletion is denied, there is nothing to wait for.
            let is_denied = || {
                server.log().lines().any(|line| {
                    line.contains("Violation") && line.contains("CONSUMER.DELETE.KV_x.")
                })
            };
            let gone = tokio::time::timeout(Duration::from_secs(20), async {
                while !look().await {
                    if is_denied() {
                        return Err("the consumer stays");
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            });
            gone.await.map_err(|_| "the consumer stays")??;
        }
        "live" => assert_eq!(Setting::live(store).await?.load().size, 7),
        "replica" => {
            let stop = CancellationToken::new();
            let apply = async |batch: Batch| {
                if batch.updates().contains(&KvUpdate::CaughtUp) {
                    stop.cancel();
                }
                Ok::<_, Infallible>(())
            };
            let (storage, config) = (MemoryStorage::new(), BatchConfig::new());
            watch_applied(store, part(), storage, config, stop.clone(), apply).await?;
        }
        "lock" => DistroRwLock::new(store, "r")?.write().await?.release().await?,
        "put" => {
            store.put("part.put", "x").await?;
            store
                .put_many([("part.many.1", "x"), ("part.many.2", "x")])
                .await
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?;
            store.delete("part.put").await?;
            store.purge("part.many.1").await?;
            store.purge("part.many.2").await?;
        }
        "create" => {
            let version = store.create("part.created", "x").await?;
            assert!(
                store.create("part.created", "x").await.is_err_and(|error| error.is_conflict())
            );
            let version = store.update("part.created", "y", version).await?;
            store.delete_with_version("part.created", version).await?;
            store.create("part.created", "x").await?;
            store.delete("part.created").await?;
        }
        "delete" => {
            store.delete("part.absent").await?;
            store.purge("part.absent").await?;
        }
        "fenced write" => {
            let fenced = store.fenced().unwrap();
            let token = FencingToken::from_u64;
            fenced.put("part.fenced", "x", token(1)).await?;
            assert_eq!(fenced.raise("part.fenced", token(2)).await?, token(2));
            assert!(
                fenced
                    .put("part.fenced", "y", token(1))
                    .await
                    .is_err_and(|error| error.is_fenced())
            );
            fenced.delete("part.fenced", token(2)).await?;
            fenced.create("part.fenced", "z", token(3)).await?;
            store.purge("part.fenced").await?;
        }
        other => panic!("no operation {other:?}"),
    }
    Ok(())
}

/// Reads a watch up to its marker. Returns the last version.
async fn watched(store: &Store, scope: WatchScope, number: usize) -> Outcome<Option<VersionToken>> {
    let watch = store.watch(scope).await?;
    let (mut live, mut last) = (0, None);
    loop {
        match watch.next().await.expect("a watch does not end")? {
            KvUpdate::CaughtUp => break,
            update => {
                let entry = update.into_entry().unwrap();
                live += usize::from(!entry.is_tombstone());
                last = Some(entry.version);
            }
        }
    }
    assert_eq!(live, number);
    Ok(last)
}
