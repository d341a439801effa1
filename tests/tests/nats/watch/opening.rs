//! Opening a watch that begins with the state: it creates its consumer before it requests the
//! stream information (ADR 0080, ADR 0091).

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::{
    Connection, KvEntry, KvUpdate, Store, StoreConfig, Watch, WatchCursor, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually};

use super::next;

const KEY: &str = "key";

/// Returns scopes that contain the key.
fn scopes() -> [WatchScope; 4] {
    [
        WatchScope::key(KEY).unwrap(),
        WatchScope::All,
        WatchScope::prefix("k"),
        WatchScope::prefixes(["a.", "key"]),
    ]
}

/// A server with the store `b`, which is opened through a proxy and without it.
struct World {
    server: NatsServer,
    proxy: TcpProxy,
    connection: Arc<dyn Connection>,
    /// Through the proxy.
    store: Store,
    direct: Store,
}

impl World {
    async fn new(history: u8) -> Self {
        Self::on(NatsServer::start(), history).await
    }

    async fn on(server: NatsServer, history: u8) -> Self {
        let proxy = TcpProxy::start(server.port()).await;
        let connection = connect(&server.url()).await.unwrap();
        let config = StoreConfig::new().history(history);
        let direct = connection.store_with_config("b", config).await.unwrap();
        // No second copy of a request is sent while the answers are held back.
        let patient = StoreConfig::new().deadline(Duration::from_secs(60));
        let through = connect(&proxy.url()).await.unwrap();
        let store = through.store_with_config("b", patient).await.unwrap();
        Self { server, proxy, connection, store, direct }
    }

    /// Opens a watch. Changes the store when the consumer exists, before the client receives the
    /// answer.
    async fn watch_around(&self, scope: WatchScope, change: impl AsyncFnOnce()) -> Watch {
        self.proxy.hold_answers(true);
        let store = self.store.clone();
        let opening = tokio::spawn(async move { store.watch(scope).await });
        eventually("the consumer exists", async || !self.server.consumers("b").await.is_empty())
            .await;
        change().await;
        self.proxy.hold_answers(false);
        opening.await.unwrap().unwrap()
    }
}

/// Returns the values up to the marker, and the cursor of the marker.
async fn state_of(watch: &mut Watch) -> (Vec<KvEntry>, WatchCursor) {
    let mut state = Vec::new();
    loop {
        match next(watch).await.unwrap() {
            KvUpdate::CaughtUp => return (state, watch.cursor().unwrap()),
            update => state.extend(update.into_entry()),
        }
    }
}

fn values(entries: &[KvEntry]) -> Vec<&[u8]> {
    entries.iter().map(|entry| entry.value.as_ref()).collect()
}

/// Returns the requests of a watch up to its marker, which is at the end of the stream.
async fn requests(world: &World, scope: WatchScope) -> Vec<String> {
    let client = world.server.client().await;
    let mut sent = client.subscribe("$JS.API.>").await.unwrap();
    // The answer shows that the server knows the subscription.
    client.request("$JS.API.INFO", "".into()).await.unwrap();
    let mut watch = world.store.watch(scope).await.unwrap();
    let (state, marker) = state_of(&mut watch).await;
    assert_eq!(values(&state), [b"value"]);
    client.publish("$JS.API.END", "".into()).await.unwrap();
    let mut kinds = Vec::new();
    loop {
        let request = futures_util::StreamExt::next(&mut sent).await.unwrap();
        let kind = request.subject.trim_start_matches("$JS.API.").split(".KV_b").next().unwrap();
        match kind {
            "END" => break,
            "INFO" | "CONSUMER.DELETE" => {}
            _ => kinds.push(kind.to_owned()),
        }
    }
    assert_eq!(marker.position(), state[0].version.as_u64().unwrap());
    kinds
}

/// Two round trips: the creation, then the first request for messages together with the stream
/// information.
#[tokio::test]
async fn watch_opens_in_two_round_trips() {
    for scope in scopes() {
        let world = World::new(1).await;
        let version = world.direct.put(KEY, "value").await.unwrap();
        let after = async || {
            let mut kinds = requests(&world, scope.clone()).await;
            kinds[1..].sort_unstable();
            assert_eq!(kinds, ["CONSUMER.CREATE", "CONSUMER.MSG.NEXT", "STREAM.INFO"], "{scope:?}");
        };
        // The handle knows the end of the stream.
        world.store.refresh().await.unwrap();
        after().await;
        // It does not know the last message, which is certainly older than the consumer.
        world.direct.update(KEY, "value", version).await.unwrap();
        let entry = world.direct.get(KEY).await.unwrap().unwrap();
        eventually("the entry is older than an opening takes", async || {
            entry.created.elapsed().is_ok_and(|age| age > Duration::from_secs(2))
        })
        .await;
        after().await;
    }
}

/// As many messages have come as waited for the consumer, and one of them was written later. The
/// key that it stands for is still to come.
#[tokio::test]
async fn key_superseded_during_opening_precedes_the_marker() {
    for (history, scope) in
        [(1, WatchScope::All), (1, WatchScope::prefix("k")), (5, WatchScope::All)]
    {
        let world = World::new(history).await;
        for key in [KEY, "key.other"] {
            world.direct.put(key, "old").await.unwrap();
        }
        let change = async || {
            world.direct.put("key.later", "value").await.unwrap();
            world.direct.purge(KEY).await.unwrap();
            world.direct.put(KEY, "new").await.unwrap();
        };
        let mut watch = world.watch_around(scope.clone(), change).await;
        let (state, marker) = state_of(&mut watch).await;
        let has_key = state.iter().any(|entry| entry.key == KEY);
        assert!(has_key, "history {history}, {scope:?}: {state:?}");
        drop(watch);
        let mut resumed = world.store.watch_from(scope, marker).await.unwrap();
        let (rest, _) = state_of(&mut resumed).await;
        assert!(state.iter().chain(&rest).any(|entry| entry.value == "new"), "{state:?}, {rest:?}");
    }
}

/// The filter of a long key does not fit into a request, so the server delivers other keys too.
/// Their messages do not complete the state.
#[tokio::test]
async fn long_key_superseded_during_opening_precedes_the_marker() {
    let world = World::on(NatsServer::builder().max_payload(1400).start(), 1).await;
    let long = "k".repeat(1000);
    for key in ["other", &long] {
        world.direct.put(key, "old").await.unwrap();
    }
    let change = async || {
        world.direct.put("later", "value").await.unwrap();
        world.direct.put(&*long, "new").await.unwrap();
    };
    let mut watch = world.watch_around(WatchScope::key(&*long).unwrap(), change).await;
    let (state, _) = state_of(&mut watch).await;
    assert_eq!(values(&state), [b"new".as_slice()]);
}

/// A write after the creation of the consumer may follow the marker. A watch that resumes at the
/// marker then delivers it.
#[tokio::test]
async fn write_during_opening_comes_after_the_marker_cursor() {
    let cases = [(1, false), (1, true), (5, false), (5, true)];
    for ((history, is_present), scope) in
        cases.into_iter().flat_map(|case| scopes().map(|scope| (case, scope)))
    {
        let world = World::new(history).await;
        if is_present {
            world.direct.put(KEY, "old").await.unwrap();
        }
        let change = async || {
            world.direct.put(KEY, "new").await.unwrap();
            world.direct.put("other", "value").await.unwrap();
        };
        let mut watch = world.watch_around(scope.clone(), change).await;
        let (state, marker) = state_of(&mut watch).await;
        let case = format!("history {history}, present: {is_present}, {scope:?}, {state:?}");
        if matches!(scope, WatchScope::Key(_)) {
            // One value completes the state.
            assert!(state.len() <= 1, "{case}");
        }
        assert!(!is_present || state.iter().any(|entry| entry.key == KEY), "{case}");
        let has_new = values(&state).contains(&b"new".as_slice());
        if !has_new {
            assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().value, "new");
        }
        let mut resumed = world.store.watch_from(scope, marker).await.unwrap();
        let (rest, _) = state_of(&mut resumed).await;
        assert_eq!(values(&rest).contains(&b"new".as_slice()), !has_new, "{case}");
    }
}

/// Writes of other keys after the creation do not make the cursor of the marker older.
#[tokio::test]
async fn marker_cursor_of_a_quiet_key_is_at_the_end() {
    for is_present in [false, true] {
        let world = World::new(1).await;
        if is_present {
            world.direct.put(KEY, "value").await.unwrap();
        }
        let change = async || {
            for _ in 0..10 {
                world.direct.put("other", "value").await.unwrap();
            }
        };
        let mut watch = world.watch_around(WatchScope::key(KEY).unwrap(), change).await;
        let (state, marker) = state_of(&mut watch).await;
        assert_eq!(state.len(), usize::from(is_present));
        // The stream no longer has all messages after the key.
        world.direct.purge(KEY).await.unwrap();
        let mut resumed =
            world.store.watch_from(WatchScope::key(KEY).unwrap(), marker).await.unwrap();
        let (rest, _) = state_of(&mut resumed).await;
        assert_eq!(rest.len(), 1, "{rest:?}");
        assert!(rest[0].operation.is_deletion());
    }
}

#[tokio::test]
async fn tombstone_and_empty_value_precede_the_marker() {
    let world = World::new(1).await;
    world.direct.put(KEY, "").await.unwrap();
    let mut watch = world.watch_around(WatchScope::key(KEY).unwrap(), async || ()).await;
    assert_eq!(values(&state_of(&mut watch).await.0), [b"".as_slice()]);
    drop(watch);
    world.direct.delete(KEY).await.unwrap();
    let mut watch = world.store.watch(WatchScope::key(KEY).unwrap()).await.unwrap();
    let (state, _) = state_of(&mut watch).await;
    assert!(state.len() == 1 && state[0].operation.is_deletion(), "{state:?}");
}

/// The consumer is in the deleted store, and the stream information is of the new one.
#[tokio::test]
async fn store_recreated_during_opening_is_watched_anew() {
    for (has_key, scope) in [false, true].into_iter().flat_map(|has| scopes().map(|s| (has, s))) {
        let world = World::new(1).await;
        world.direct.put(KEY, "old").await.unwrap();
        let change = async || {
            world.connection.delete_store("b").await.unwrap();
            let recreated = world.connection.store("b").await.unwrap();
            recreated.put("other", "value").await.unwrap();
            if has_key {
                recreated.put(KEY, "new").await.unwrap();
            }
        };
        let mut watch = world.watch_around(scope.clone(), change).await;
        let (mut state, marker) = state_of(&mut watch).await;
        state.retain(|entry| entry.key == KEY);
        assert_eq!(values(&state), if has_key { vec![b"new".as_slice()] } else { Vec::new() });
        let mut resumed = world.store.watch_from(scope, marker).await.unwrap();
        assert_eq!(next(&mut resumed).await.unwrap(), KvUpdate::CaughtUp);
    }
}

/// The entry needs no further request. The cursor of the marker needs one, which comes later.
#[tokio::test]
async fn entry_is_delivered_before_the_marker_is_proven() {
    let world = World::new(1).await;
    world.direct.put(KEY, "value").await.unwrap();
    let change = async || {
        world.direct.put("other", "value").await.unwrap();
    };
    let mut watch = world.watch_around(WatchScope::key(KEY).unwrap(), change).await;
    world.proxy.hold_requests(true);
    let entry = next(&mut watch).await.unwrap().into_entry().unwrap();
    assert_eq!(entry.value, "value");
    world.proxy.hold_requests(false);
    assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
    // Without an answer, the cursor would stay at the entry.
    let marker = watch.cursor().unwrap().position();
    assert!(marker > entry.version.as_u64().unwrap(), "{marker}");
}

/// A deletion that was written during the opening is delivered, even if the server has removed its
/// tombstone before it is asked for the newest message.
#[tokio::test]
async fn deletion_removed_before_the_marker_is_delivered() {
    for (has_other, scope) in [false, true].into_iter().flat_map(|has| scopes().map(|s| (has, s))) {
        let world = World::new(5).await;
        world.direct.put(KEY, "value").await.unwrap();
        if has_other {
            world.direct.put("key.other", "value").await.unwrap();
        }
        let change = async || {
            world.direct.delete(KEY).await.unwrap();
        };
        let mut watch = world.watch_around(scope.clone(), change).await;
        let has_other = has_other && !matches!(scope, WatchScope::Key(_));
        let entries = 1 + usize::from(has_other);
        let stream = async_nats::jetstream::new(world.server.client().await);
        let stream = stream.get_stream("KV_b").await.unwrap();
        let name = world.server.consumers("b").await.remove(0);
        eventually("all messages were sent", async || {
            let delivered = stream.consumer_info(&name).await.unwrap().delivered;
            delivered.consumer_sequence == entries as u64 + 1
        })
        .await;
        for _ in 0..entries {
            let entry = next(&mut watch).await.unwrap().into_entry().unwrap();
            assert_eq!(entry.value, "value", "{scope:?}");
        }
        stream.purge().filter(format!("$KV.b.{KEY}")).await.unwrap();
        assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp, "{scope:?}");
        let deletion = next(&mut watch).await.unwrap().into_entry().unwrap();
        assert!(deletion.operation.is_deletion(), "{scope:?}: {deletion:?}");
    }
}
