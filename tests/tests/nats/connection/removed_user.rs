//! A user that the server's operator removes under an open connection: the server reads its
//! configuration again (SIGHUP), ends the connection, and rejects each new one.

use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    Connection, KeyValue, KvError, LiveRead, LiveStatic, NatsAuth, NatsConnectionConfig,
    StaticKeyIndexedValue, WatchLink, WatchScope, nats_connect,
};
use shizuku_kv_tests::{NatsServer, eventually};

use super::{SHORT, caught_up, config, opened};

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.limits", codec = json)]
struct Limits {
    connections: u32,
}

#[derive(Serialize, Deserialize, KeyValue)]
#[kv(key = "user.{id}", codec = json)]
struct User {
    id: u64,
}

fn is_told(link: &WatchLink) -> bool {
    matches!(link, WatchLink::Down { reason, .. } if reason.contains("rejects the credentials; renew them, or"))
}

async fn removed_user_is_named(
    section: &str,
    to_config: impl FnOnce(&NatsServer) -> NatsConnectionConfig,
) {
    println!("{section}");
    let other = "authorization { users: [ { user: other, password: another } ] }";
    let mut server = NatsServer::builder().config(section).start();
    let connection = nats_connect(to_config(&server).deadline(SHORT)).await.unwrap();
    let store = opened(&connection, "config").await;
    Limits { connections: 5 }.write_to_anyway(&store).await.unwrap();
    let mut live = Limits::live(&store).await.unwrap();
    let map = User::live_map(&store).await.unwrap();
    let watch = caught_up(&store, WatchScope::All).await;
    eventually("the user is let in", async || connection.health().await.is_ok()).await;

    server.reload(other);
    eventually("health names the rejection", async || match connection.health().await {
        Ok(()) => false,
        Err(error) => {
            assert!(!format!("{error}{error:?}").contains("hunter2"), "{error:?}");
            let is_told = error.to_string().contains("rejects the credentials");
            assert!(
                !is_told || matches!(error, KvError::Unauthorized { operation: "health", .. }),
                "{error:?}"
            );
            is_told
        }
    })
    .await;
    eventually("the live value names the rejection", async || is_told(&live.status().link)).await;
    assert!(!live.status().is_current());
    assert_eq!(live.load().connections, 5);
    eventually("the live map names the rejection", async || is_told(&map.status().link)).await;
    eventually("the watch names the rejection", async || {
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), watch.next()).await;
        is_told(&watch.link())
    })
    .await;
    let read = store.with_deadline(SHORT).get("config.limits").await.unwrap_err();
    assert!(read.is_retryable() && read.to_string().contains("rejects the credentials"), "{read}");

    server.reload(section);
    eventually("the user is let in again", async || connection.health().await.is_ok()).await;
    Limits { connections: 6 }.write_to_anyway(&store).await.unwrap();
    live.changed().await.unwrap();
    assert_eq!(live.load().connections, 6);
    eventually("all are up", async || live.status().is_current() && map.status().is_current())
        .await;
}

#[tokio::test]
async fn removed_user_is_named_by_health_and_live_values() {
    let section = "authorization { users: [ { user: app, password: hunter2 } ] }";
    removed_user_is_named(section, |server| config(&server.url_as("app:hunter2"))).await;
    let section = "authorization { token: hunter2 }";
    removed_user_is_named(section, |server| config(&server.url_as("hunter2"))).await;
    let key = KeyPair::new_user();
    let section = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key());
    let auth = NatsAuth::NKey(key.seed().unwrap());
    removed_user_is_named(&section, |server| config(&server.url()).auth(auth)).await;
}
