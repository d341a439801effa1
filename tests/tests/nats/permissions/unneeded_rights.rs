//! Operations that work without a right that their other implementations need.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    KeyValue, KvError, KvUpdate, LiveStatic, StaticKeyIndexedValue, Store, Watch, WatchScope,
};
use shizuku_kv_tests::{NatsServer, eventually};

use super::operations::Setting;
use super::rights::{Rights, at_once, open};

const LEADER: &str = "$JS.API.STREAM.MSG.GET.>";

async fn without_leader_reads() -> (NatsServer, Store, Store) {
    let server = Rights::all_but([LEADER]).start();
    let (admin, app) = open(&server, "b").await;
    (server, admin, app)
}

/// Reads a watch up to its marker.
async fn state(watch: &mut Watch) -> BTreeMap<String, bytes::Bytes> {
    let mut state = BTreeMap::new();
    loop {
        match at_once("state", watch.next()).await.unwrap().unwrap() {
            KvUpdate::CaughtUp => return state,
            update => {
                let entry = update.into_entry().unwrap();
                state.insert(entry.key.to_string(), entry.value);
            }
        }
    }
}

/// The server reports the sequence, and a consumer at the leader has the message.
#[tokio::test]
async fn create_without_any_direct_read_exists() {
    let server = Rights::all_but([LEADER, "$JS.API.DIRECT.GET.>"]).start();
    let (admin, app) = open(&server, "b").await;
    let version = admin.put("key", "value").await.unwrap();
    match at_once("create", app.create("key", "other")).await {
        Err(KvError::AlreadyExists { found, .. }) => assert_eq!(found, Some(version)),
        other => panic!("{other:?}"),
    }
    admin.purge("key").await.unwrap();
    at_once("create", app.create("key", "other")).await.unwrap();
}

#[tokio::test]
async fn get_of_an_absent_key_without_leader_reads_is_none() {
    let (server, admin, app) = without_leader_reads().await;
    admin.put("key.child", "value").await.unwrap();
    for _ in 0..5 {
        assert_eq!(at_once("get", app.get("key")).await.unwrap(), None);
    }
    let denied = server.log().matches("STREAM.MSG.GET").count();
    assert!(denied <= 1, "{denied} refused requests");
}

#[tokio::test]
async fn watch_of_a_part_puts_its_filter_into_the_subject() {
    let server = Rights::publish([
        "$JS.API.STREAM.INFO.KV_b",
        "$JS.API.CONSUMER.CREATE.KV_b.*.$KV.b.part.>",
        "$JS.API.CONSUMER.MSG.NEXT.KV_b.*",
    ])
    .start();
    let (admin, app) = open(&server, "b").await;
    admin.put("part.key", "value").await.unwrap();
    admin.put("other", "value").await.unwrap();
    for scope in [
        WatchScope::prefix("part."),
        WatchScope::prefix("part.k"),
        WatchScope::key("part.key").unwrap(),
        WatchScope::keys(["part.key"]).unwrap(),
        WatchScope::prefixes(["part.key", "part."]),
    ] {
        let mut watch = at_once("watch", app.watch(scope)).await.unwrap();
        assert_eq!(state(&mut watch).await.into_keys().collect::<Vec<_>>(), ["part.key"]);
    }
}

/// The right that watches needed before is enough, and the longer form is tried once.
#[tokio::test]
async fn plain_form_of_consumers_is_remembered() {
    let server = Rights::publish([
        "$JS.API.STREAM.INFO.KV_b",
        "$JS.API.CONSUMER.CREATE.KV_b.*",
        "$JS.API.CONSUMER.DELETE.KV_b.*",
        "$JS.API.CONSUMER.MSG.NEXT.KV_b.*",
    ])
    .start();
    let (admin, app) = open(&server, "b").await;
    admin.put("part.key", "value").await.unwrap();
    for scope in
        [WatchScope::All, WatchScope::prefix("part."), WatchScope::key("part.key").unwrap()]
    {
        let mut watch = at_once("watch", app.watch(scope.clone())).await.unwrap();
        assert_eq!(state(&mut watch).await.len(), 1);
        // A single key is read by name.
        if !matches!(scope, WatchScope::Key(_)) {
            assert_eq!(at_once("scan", app.scan(scope).try_collect()).await.unwrap().len(), 1);
        }
    }
    let denied = server.log().matches("$JS.API.CONSUMER.CREATE.KV_b.").count();
    assert_eq!(denied, 1, "{}", server.log());
}

#[tokio::test]
async fn watch_resumes_without_leader_reads() {
    let (mut server, admin, app) = without_leader_reads().await;
    admin.put("a", "1").await.unwrap();
    let mut watch = app.watch(WatchScope::All).await.unwrap();
    assert_eq!(state(&mut watch).await.len(), 1);
    let cursor = watch.cursor().unwrap();
    admin.put("b", "2").await.unwrap();
    assert_eq!(at_once("b", watch.next()).await.unwrap().unwrap().into_entry().unwrap().key, "b");
    // The watch itself continues after the server was away.
    server.restart();
    eventually("the server is back", async || admin.put("c", "3").await.is_ok()).await;
    assert_eq!(at_once("c", watch.next()).await.unwrap().unwrap().into_entry().unwrap().key, "c");
    // Another watch resumes from a stored cursor.
    let mut resumed = at_once("resume", app.watch_from(WatchScope::All, cursor)).await.unwrap();
    assert_eq!(state(&mut resumed).await.into_keys().collect::<Vec<_>>(), ["b", "c"]);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "part.second", codec = json)]
struct Second {
    size: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "part.third", codec = json)]
struct Third {
    size: u32,
}

/// Live values of a store share watches. One for several keys needs a right that the user lacks.
#[tokio::test]
async fn several_live_values_of_a_part_stay_current() {
    let server = Rights::publish([
        "$JS.API.STREAM.INFO.KV_b",
        "$JS.API.DIRECT.GET.KV_b.$KV.b.part.>",
        "$JS.API.CONSUMER.CREATE.KV_b.*.$KV.b.part.>",
        "$JS.API.CONSUMER.MSG.NEXT.KV_b.*",
    ])
    .start();
    let (admin, app) = open(&server, "b").await;
    Setting { size: 1 }.write_to_anyway(&admin).await.unwrap();
    Second { size: 1 }.write_to_anyway(&admin).await.unwrap();
    Third { size: 1 }.write_to_anyway(&admin).await.unwrap();
    let (first, second) = tokio::join!(Setting::live(&app), Second::live(&app));
    let (mut first, mut second) = (first.unwrap(), second.unwrap());
    let mut third = at_once("third", Third::live(&app)).await.unwrap();
    for size in 2..6 {
        Setting { size }.write_to_anyway(&admin).await.unwrap();
        Second { size }.write_to_anyway(&admin).await.unwrap();
        Third { size }.write_to_anyway(&admin).await.unwrap();
        assert_eq!(at_once("first", first.changed()).await.unwrap().size, size);
        assert_eq!(at_once("second", second.changed()).await.unwrap().size, size);
        assert_eq!(at_once("third", third.changed()).await.unwrap().size, size);
    }
    assert!(
        first.status().is_current() && second.status().is_current() && third.status().is_current()
    );
    let denied = server.log().matches("Publish Violation").count();
    assert!(denied < 20, "{denied} refused requests");
}
