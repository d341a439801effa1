//! Requests that are never answered: a stream without a leader, direct gets that were turned off, a
//! deleted store. A client subscribes to everything meanwhile, so that the server never reports "no
//! responders".

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use futures_util::StreamExt;
use futures_util::future::join_all;
use shizuku_kv::rw_lock::{DistroRwLock, LockOptions};
use shizuku_kv::{
    Connection, KvError, KvResult, KvUpdate, ReadConsistency, Store, StoreConfig, WatchScope,
    connect, nats_connect,
};
use shizuku_kv_tests::{NatsCluster, NatsServer, eventually};

use super::{operations, within};

const LONG: Duration = Duration::from_secs(20);

/// Returns a client that subscribes to everything until it is dropped.
async fn listener(server: &NatsServer) -> async_nats::Subscriber {
    let client = server.client().await;
    let everything = client.subscribe(">").await.unwrap();
    client.flush().await.unwrap();
    everything
}

/// Changes the configuration of a bucket's stream, as an operator may.
async fn reconfigure(
    server: &NatsServer,
    bucket: &str,
    change: impl FnOnce(&mut jetstream::stream::Config),
) {
    let context = jetstream::new(server.client().await);
    let stream = context.get_stream(format!("KV_{bucket}")).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    change(&mut config);
    context.update_stream(config).await.unwrap();
}

#[tokio::test]
async fn reads_without_direct_gets_ask_the_leader() {
    for listens in [false, true] {
        let server = NatsServer::start();
        let store = connect(&server.url()).await.unwrap().store("b").await.unwrap();
        let written = store.put("key", "x").await.unwrap();
        let many: Vec<_> = (0..200).map(|n| format!("k.{n}")).collect();
        store.put_many(many.iter().map(|key| (key.as_str(), "x"))).await;
        let _listener = if listens { Some(listener(&server).await) } else { None };
        reconfigure(&server, "b", |config| config.allow_direct = false).await;
        assert_eq!(store.get("key").await.unwrap().unwrap().version, written);
        assert!(store.get("none").await.unwrap().is_none());
        assert!(store.get_many(&many).await.unwrap().iter().all(Option::is_some));
        // Another handle detects it by its batch.
        let other = connect(&server.url()).await.unwrap();
        reconfigure(&server, "b", |config| config.allow_direct = true).await;
        let other = other.store("b").await.unwrap();
        reconfigure(&server, "b", |config| config.allow_direct = false).await;
        assert!(other.get_many(&many).await.unwrap().iter().all(Option::is_some));
    }
}

#[tokio::test]
async fn server_without_jetstream_is_named_as_the_cause() {
    for listens in [false, true] {
        let server = NatsServer::builder().jetstream(false).start();
        let deadline = Duration::from_secs(2);
        let config = super::config(&server.url()).deadline(deadline);
        let connection = nats_connect(config).await.unwrap();
        let _listener = if listens { Some(listener(&server).await) } else { None };
        let (opened, health) = tokio::join!(
            within(deadline, "store", connection.store("b")),
            within(deadline, "health", connection.health())
        );
        for error in [opened.unwrap_err(), health.unwrap_err()] {
            assert!(error.to_string().contains("JetStream is not enabled"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn operations_on_a_deleted_store_say_that_it_is_gone() {
    for listens in [false, true] {
        for consistency in [ReadConsistency::Any, ReadConsistency::Leader] {
            let server = NatsServer::start();
            let connection = connect(&server.url()).await.unwrap();
            let settings = StoreConfig::new().consistency(consistency);
            let store = connection.store_with_config("b", settings).await.unwrap();
            let version = store.put("key", "x").await.unwrap();
            let _listener = if listens { Some(listener(&server).await) } else { None };
            connect(&server.url()).await.unwrap().delete_store("b").await.unwrap();
            let mut all = operations(&*connection, &store, [version; 2]);
            all.retain(|(what, _)| {
                !matches!(*what, "store" | "list_stores" | "delete_store" | "health")
            });
            let ends = all.into_iter().map(async |(what, operation)| {
                let error = within(store.deadline(), what, operation).await.expect_err(what);
                assert!(matches!(error, KvError::StoreNotFound { .. }), "{what}: {error:?}");
            });
            join_all(ends).await;
        }
    }
}

/// A stream that does not accept writes to its bucket behaves like one without a leader.
#[tokio::test]
async fn unaccepted_writes_are_sent_again_until_accepted() {
    for listens in [false, true] {
        let server = NatsServer::start();
        let connection = connect(&server.url()).await.unwrap();
        let settings = StoreConfig::new().history(5).deadline(LONG);
        let store = connection.store_with_config("b", settings).await.unwrap();
        let version = store.put("update", "before").await.unwrap();
        let mut listener = listener(&server).await;
        reconfigure(&server, "b", |config| config.subjects = vec!["elsewhere.>".into()]).await;
        let writes = [
            spawn(&store, |store| {
                Box::pin(async move { store.create("create", "x").await.map(drop) })
            }),
            spawn(&store, move |store| {
                Box::pin(async move { store.update("update", "x", version).await.map(drop) })
            }),
        ];
        for _ in 0..2 {
            while !listener.next().await.unwrap().subject.starts_with("$KV.") {}
        }
        if !listens {
            drop(listener);
        }
        reconfigure(&server, "b", |config| config.subjects = vec!["$KV.b.>".into()]).await;
        for write in writes {
            within(LONG, "a write", write).await.unwrap().unwrap();
        }
        for (key, entries) in [("create", 1), ("update", 2)] {
            assert_eq!(
                store.history(key).unwrap().try_collect().await.unwrap().len(),
                entries,
                "{key}"
            );
        }
    }
}

type Work = futures_util::future::BoxFuture<'static, KvResult<()>>;

fn spawn(store: &Store, work: impl FnOnce(Store) -> Work) -> tokio::task::JoinHandle<KvResult<()>> {
    tokio::spawn(work(store.clone()))
}

/// A bucket with three replicas, accessed through a node that does not lead it.
async fn replicated(cluster: &NatsCluster, deadline: Duration) -> (Arc<dyn Connection>, Store) {
    let first = connect(&cluster.url()).await.unwrap();
    let config = || StoreConfig::new().replicas(3).deadline(deadline);
    eventually("the bucket is made", async || first.store_with_config("b", config()).await.is_ok())
        .await;
    cluster.wait_until_healthy("b").await;
    let away = (cluster.leader_of("b").await + 1) % 3;
    let config_of = |node: usize| super::config(&cluster.node(node).url()).deadline(deadline);
    let connection: Arc<dyn Connection> = Arc::new(nats_connect(config_of(away)).await.unwrap());
    let store = connection.store_with_config("b", config()).await.unwrap();
    (connection, store)
}

/// Calls every operation of a store while its stream has no leader, until one is elected.
async fn survives_the_death_of_the_leader(listens: bool) {
    let cluster = NatsCluster::start().await;
    let (connection, store) = replicated(&cluster, LONG).await;
    let version = store.put("key", "x").await.unwrap();
    let deleted = store.put("w.delete_with_version", "x").await.unwrap();
    let updated = store.put("w.update", "x").await.unwrap();
    let replicas = StoreConfig::new().replicas(3);
    connection.store_with_config("other", replicas).await.unwrap();
    cluster.wait_until_healthy("other").await;
    let leader = connection
        .store_with_config(
            "b",
            StoreConfig::new().consistency(ReadConsistency::Leader).deadline(LONG),
        )
        .await
        .unwrap();
    let leases: Vec<_> = (0..5)
        .map(|n| {
            // Each has a handle of its own, so that each has a session of its own.
            let (connection, name) = (Arc::clone(&connection), format!("r{n}"));
            async move {
                let store = connection.store("b").await.unwrap();
                let lock = DistroRwLock::with_options(&store, name, LockOptions::new()).unwrap();
                lock.write().await.unwrap()
            }
        })
        .collect();
    let guards = join_all(leases).await;
    let client = cluster.node((cluster.leader_of("b").await + 1) % 3).client().await;
    let _listener = if listens {
        let everything = client.subscribe(">").await.unwrap();
        client.flush().await.unwrap();
        Some(everything)
    } else {
        None
    };
    let dead = cluster.leader_of("b").await;
    cluster.node(dead).kill();

    let mut all = operations(&*connection, &store, [updated, deleted]);
    all.retain(|(what, _)| *what != "delete_store");
    all.push(("leader get", Box::pin(async { leader.get("key").await.map(drop) })));
    let ends = all.into_iter().map(async |(what, operation)| {
        let result = within(LONG, what, operation).await;
        (what, result)
    });
    let results = join_all(ends).await;
    for (what, result) in results {
        match result {
            Ok(()) => {}
            // A write that is sent without waiting must not overtake later ones.
            Err(KvError::Unavailable { .. }) if what == "put_many" => {}
            // Older servers do not report since when a leader leads.
            Err(KvError::OutcomeUnknown { .. })
                if listens
                    && !cluster.node(0).is_at_least(2, 12)
                    && matches!(what, "put" | "delete" | "purge" | "put_many") => {}
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    for (n, guard) in guards.iter().enumerate() {
        assert!(guard.is_held(), "lock {n} is lost");
    }
    let watch = store.watch(WatchScope::All).await.unwrap();
    while watch.next().await.unwrap().unwrap() != KvUpdate::CaughtUp {}
}

#[tokio::test]
#[ignore = "takes twenty seconds, most of it elections: scripts/test --long"]
async fn operations_outlast_the_death_of_a_leader() {
    for listens in [false, true] {
        println!("a client listens to everything: {listens}");
        survives_the_death_of_the_leader(listens).await;
    }
}
