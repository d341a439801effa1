//! Rights that change under an open handle: the server reads its configuration again.

use std::convert::Infallible;
use std::time::Duration;

use shizuku_kv::replica::{Batch, CancellationToken, MemoryStorage, ReplicaError};
use shizuku_kv::rw_lock::{DistroRwLock, LockOptions};
use shizuku_kv::{
    BatchConfig, Connection, FencingToken, KvError, KvUpdate, LiveStatic, LiveSyncState,
    NatsConnection, Store, StoreConfig, WatchScope, watch_applied,
};
use shizuku_kv_tests::{NatsServer, eventually};

use super::operations::{Setting, prepared};
use super::rights::{PATIENCE, Rights, assert_names, at_once, connect_as};

fn everything() -> Rights {
    Rights::all_but(Vec::<String>::new())
}

async fn opened() -> (NatsServer, NatsConnection, Store) {
    let server = everything().start();
    prepared(&server).await;
    let app = connect_as(&server, "app").await;
    let store = app.store_with_config("x", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
    (server, app, store)
}

fn without_answers() -> String {
    everything().subscribe(["other.>"]).section()
}

#[tokio::test]
async fn removed_publish_right_is_unauthorized() {
    let (mut server, _app, store) = opened().await;
    store.put("key", "value").await.unwrap();
    server.reload(&Rights::all_but(["$KV.x.>"]).section());
    assert_names(&at_once("put", store.put("key", "other")).await.unwrap_err(), "$KV.x.key");
    assert!(at_once("get", store.get("key")).await.unwrap().is_some());
    server.reload(&everything().section());
    at_once("put", store.put("key", "again")).await.unwrap();
}

#[tokio::test]
async fn removed_subscription_right_ends_watches_and_reads() {
    let (mut server, app, store) = opened().await;
    let watch = store.watch(WatchScope::All).await.unwrap();
    while at_once("state", watch.next()).await.unwrap().unwrap() != KvUpdate::CaughtUp {}
    server.reload(&without_answers());
    assert_names(&at_once("watch", watch.next()).await.unwrap().unwrap_err(), "_INBOX.>");
    assert!(watch.next().await.is_none());
    assert_names(&at_once("get", store.get("key")).await.unwrap_err(), "_INBOX.>");
    assert_names(&at_once("put", store.put("key", "x")).await.unwrap_err(), "_INBOX.>");
    assert_names(&at_once("watch", store.watch(WatchScope::All)).await.unwrap_err(), "_INBOX.>");
    assert_names(&at_once("health", app.health()).await.unwrap_err(), "_INBOX.>");
    // The server does not restore the subscription, so that the library must reconnect.
    server.reload(&everything().section());
    eventually("health", async || app.health().await.is_ok()).await;
    assert_eq!(at_once("get", store.get("key")).await.unwrap(), None);
    let watch = at_once("watch", store.watch(WatchScope::All)).await.unwrap();
    at_once("update", watch.next()).await.unwrap().unwrap();
}

/// A write in flight at that moment may have taken effect.
#[tokio::test]
async fn write_whose_answer_cannot_arrive_is_unknown_or_refused() {
    let (mut server, _app, store) = opened().await;
    let writer = store.clone();
    let writes = tokio::spawn(async move {
        loop {
            if let Err(error) = writer.put("key", "value").await {
                return error;
            }
        }
    });
    server.reload(&without_answers());
    let error = at_once("write", writes).await.unwrap();
    let is_told = match &error {
        KvError::Unauthorized { .. } => true,
        KvError::OutcomeUnknown { source: Some(source), .. } => {
            source.to_string().contains("_INBOX.>")
        }
        _ => false,
    };
    assert!(is_told, "{error:?}");
}

#[tokio::test]
async fn removed_subscription_right_shows_in_a_live_value() {
    let (mut server, _app, store) = opened().await;
    let live = Setting::live(&store).await.unwrap();
    assert!(live.status().is_current());
    server.reload(&without_answers());
    let statuses = live.statuses();
    let told = async {
        loop {
            let status = live.status();
            match (&status.sync_state, status.link.is_up()) {
                (LiveSyncState::Ended { error, .. }, _) => return error.to_string(),
                (_, false) => return format!("{:?}", status.link),
                _ => statuses.next().await.expect("a status"),
            };
        }
    };
    let told = at_once("status", told).await;
    assert!(told.contains("this user may not subscribe to") && told.contains("_INBOX.>"), "{told}");
    assert_eq!(live.load().size, 7);
}

#[tokio::test]
async fn removed_subscription_right_ends_a_replica() {
    let (mut server, _app, store) = opened().await;
    let (caught_up, mut is_caught_up) = tokio::sync::watch::channel(false);
    let replica = tokio::spawn(async move {
        let apply = async |batch: Batch| {
            caught_up.send_modify(|is| *is |= batch.updates().contains(&KvUpdate::CaughtUp));
            Ok::<_, Infallible>(())
        };
        let (storage, stop) = (MemoryStorage::new(), CancellationToken::new());
        watch_applied(&store, WatchScope::All, storage, BatchConfig::new(), stop, apply).await
    });
    at_once("state", is_caught_up.wait_for(|is| *is)).await.unwrap();
    server.reload(&without_answers());
    match at_once("replica", replica).await.unwrap() {
        Err(ReplicaError::Store(error)) => assert_names(&error, "_INBOX.>"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn removed_rights_lose_a_lock() {
    for (rights, named) in [
        (Rights::all_but(["$KV.x.>"]).section(), "publish to \"$KV.x.rw_lock"),
        (without_answers(), "_INBOX.>"),
    ] {
        let (mut server, _app, store) = opened().await;
        let options = LockOptions::new().lease(Duration::from_secs(3));
        let lock = DistroRwLock::with_options(&store, "r", options).unwrap();
        let guard = at_once("lock", lock.write()).await.unwrap();
        server.reload(&rights);
        at_once("loss", guard.lost()).await;
        assert!(!guard.is_held());
        let error = at_once("lock", lock.write()).await.unwrap_err().to_string();
        assert!(error.contains("this user may not") && error.contains(named), "{error}");
        server.reload(&everything().section());
        eventually("another lock", async || lock.write().await.is_ok()).await;
    }
}

/// Requests for messages stay open for half a minute. The next one is denied.
#[tokio::test]
async fn removed_right_to_read_consumers_ends_a_watch() {
    let (mut server, _app, store) = opened().await;
    let watch = store.watch(WatchScope::All).await.unwrap();
    while at_once("state", watch.next()).await.unwrap().unwrap() != KvUpdate::CaughtUp {}
    server.reload(&Rights::all_but(["$JS.API.CONSUMER.MSG.NEXT.>"]).section());
    let refused = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap_err();
    assert_names(&refused, "$JS.API.CONSUMER.MSG.NEXT.KV_x.*");
}

/// Returns a store `x` of the user `app`, who has these rights beside those to open and to write.
async fn opened_with(rights: &[&str]) -> (NatsServer, Store) {
    let server = some(rights).start();
    prepared(&server).await;
    let app = connect_as(&server, "app").await;
    let store = app.store_with_config("x", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
    (server, store)
}

fn some(rights: &[&str]) -> Rights {
    let always = [
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.KV_x",
        "$JS.API.CONSUMER.MSG.NEXT.KV_x.*",
        "$JS.API.CONSUMER.DELETE.KV_x.*",
        "$KV.x.>",
    ];
    Rights::publish(always.iter().chain(rights).copied())
}

/// The form of a request that was denied before is used again if the other one is denied. A reload
/// keeps the connection.
#[tokio::test]
async fn consumers_follow_changed_rights() {
    const ANY: &str = "$JS.API.CONSUMER.CREATE.KV_x.*";
    const PART: &str = "$JS.API.CONSUMER.CREATE.KV_x.*.$KV.x.part.>";
    let (mut server, store) = opened_with(&[ANY]).await;
    let part = || WatchScope::prefix("part.");
    let count = async || Ok::<_, KvError>(store.scan(part()).try_collect().await?.len());
    for rights in [[ANY], [PART], [ANY], [PART]] {
        server.reload(&some(&rights).section());
        let denied = server.log().matches("Publish Violation").count();
        for _ in 0..3 {
            assert_eq!(at_once("scan", count()).await.unwrap(), 4, "{rights:?}");
        }
        let denied = server.log().matches("Publish Violation").count() - denied;
        assert!(denied <= 1, "{denied} denied requests with {rights:?}");
    }
    let all = at_once("watch", store.watch(WatchScope::All)).await.unwrap_err();
    assert_names(&all, "$JS.API.CONSUMER.CREATE.KV_x.*.$KV.x.>");
    server.reload(&some(&[]).section());
    for _ in 0..2 {
        assert_names(&at_once("scan", count()).await.unwrap_err(), PART);
    }
}

/// A fenced write over an existing value needs a message from the leader, or a consumer.
#[tokio::test]
async fn proofs_follow_changed_rights() {
    const LEADER: &str = "$JS.API.STREAM.MSG.GET.KV_x";
    const CONSUMER: &str = "$JS.API.CONSUMER.CREATE.KV_x.*.$KV.x.>";
    let (mut server, store) = opened_with(&[CONSUMER]).await;
    let fenced = store.fenced().unwrap();
    let put = async || fenced.put("part.a.1", "x", FencingToken::from_u64(1)).await;
    for rights in [[CONSUMER], [LEADER], [CONSUMER], [LEADER]] {
        server.reload(&some(&rights).section());
        for _ in 0..2 {
            at_once("fenced put", put())
                .await
                .unwrap_or_else(|error| panic!("{rights:?}: {error}"));
        }
    }
    server.reload(&some(&[]).section());
    for _ in 0..2 {
        assert_names(&at_once("fenced put", put()).await.unwrap_err(), LEADER);
    }
}

#[tokio::test]
async fn reads_of_many_keys_follow_changed_rights() {
    const BATCH: &str = "$JS.API.DIRECT.GET.KV_x";
    const SINGLE: &str = "$JS.API.DIRECT.GET.KV_x.>";
    let (mut server, store) = opened_with(&[SINGLE]).await;
    let many = async || store.get_many(["part.a.1", "part.a.2", "part.b.1", "other"]).await;
    for right in [SINGLE, BATCH, SINGLE] {
        if right == BATCH && !server.is_at_least(2, 11) {
            continue;
        }
        server.reload(&some(&[right]).section());
        for _ in 0..2 {
            let found = at_once("get_many", many())
                .await
                .unwrap_or_else(|error| panic!("{right}: {error}"));
            assert_eq!(found.iter().flatten().count(), 4, "{right}");
        }
    }
    server.reload(&some(&[]).section());
    for _ in 0..2 {
        let error = at_once("get_many", many()).await.unwrap_err();
        assert!(error.to_string().contains("$JS.API.DIRECT.GET.KV_x.$KV.x."), "{error}");
    }
}
