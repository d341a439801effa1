//! Many denials at the same time. The client library passes on 128 events of a connection at once
//! and drops the others. Writes and requests without a notification of their denial therefore check
//! their right.

use futures_util::future::join_all;
use shizuku_kv::{Connection, KvError, KvResult, Store, StoreConfig};

use super::rights::{PATIENCE, Rights, assert_names, at_once, connect_as, open};

const CROWD: usize = 2000;

/// Each ends long before its deadline, at which a write without a notification would be of unknown
/// outcome.
async fn denied_writes_are_unauthorized() {
    let server = Rights::all_but(["$KV.b.secret.>"]).start();
    let (_admin, app) = open(&server, "b").await;
    assert_eq!(app.deadline(), PATIENCE);
    let key = |number: usize| {
        if number.is_multiple_of(10) { format!("k{number}") } else { format!("secret.k{number}") }
    };
    let check = |answers: Vec<KvResult<_>>| {
        for (number, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(_) => assert_eq!(number % 10, 0),
                Err(error) => assert_names(&error, &format!("$KV.b.secret.k{number}")),
            }
        }
    };
    check(at_once("puts", join_all((0..CROWD).map(|number| app.put(key(number), "x")))).await);
    let items = (0..CROWD).map(|number| (key(number), "x"));
    check(at_once("put_many", app.put_many(items)).await);
}

#[tokio::test]
async fn denied_writes_of_a_crowd_are_unauthorized_on_one_thread() {
    denied_writes_are_unauthorized().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_writes_of_a_crowd_are_unauthorized_on_several_threads() {
    denied_writes_are_unauthorized().await;
}

/// The user has the right to leader reads, which answer a read that no replica answers. A read
/// whose denial was lost would therefore succeed, and a notified one would not.
async fn denied_gets_are_unauthorized() {
    let server = Rights::all_but(["$JS.API.DIRECT.GET.KV_b.$KV.b.secret.>"]).start();
    let (admin, app) = open(&server, "b").await;
    admin.put("k0", "x").await.unwrap();
    let app = &app;
    let get = |number: usize| async move {
        let key =
            if number.is_multiple_of(10) { "k0".to_owned() } else { format!("secret.k{number}") };
        (key.clone(), app.get(key).await)
    };
    for (key, answer) in at_once("gets", join_all((0..CROWD).map(get))).await {
        match answer {
            Ok(found) => assert!(key == "k0" && found.is_some(), "{key}: {found:?}"),
            Err(error) => assert_names(&error, &format!("$JS.API.DIRECT.GET.KV_b.$KV.b.{key}")),
        }
    }
}

#[tokio::test]
async fn denied_gets_of_a_crowd_are_unauthorized_on_one_thread() {
    denied_gets_are_unauthorized().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_gets_of_a_crowd_are_unauthorized_on_several_threads() {
    denied_gets_are_unauthorized().await;
}

/// A read that is not notified in time tries other ways, for which the user has no right either.
#[tokio::test]
async fn every_read_of_a_refused_crowd_is_unauthorized() {
    let server = Rights::publish(["$JS.API.INFO", "$JS.API.STREAM.INFO.KV_b"]).start();
    let (admin, app) = open(&server, "b").await;
    for number in 0..CROWD {
        admin.put(format!("k{number}"), "x").await.unwrap();
    }
    let reads = (0..CROWD).map(|number| app.get(format!("k{number}")));
    for answer in at_once("gets", join_all(reads)).await {
        let error = answer.unwrap_err();
        assert!(matches!(error, KvError::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains("this user may not publish to"), "{error}");
    }
}

/// Sends denied writes, and with the first ones the command.
async fn in_crowd<T>(app: &Store, command: impl Future<Output = T>) -> T {
    let puts = || join_all((0..CROWD / 2).map(|number| app.put(format!("secret.k{number}"), "x")));
    let (_, done, _) = at_once("a command", async { tokio::join!(puts(), command, puts()) }).await;
    done
}

/// A command is sent once, so that its right is checked with a request that is not one.
#[tokio::test]
async fn denied_commands_in_a_crowd_are_unauthorized() {
    let denied = ["$KV.b.secret.>", "$JS.API.STREAM.DELETE.KV_b", "$JS.API.STREAM.UPDATE.KV_b"];
    let server = Rights::all_but(denied).start();
    let (admin, app) = open(&server, "b").await;
    admin.put("key", "value").await.unwrap();
    let connection = connect_as(&server, "app").await;
    let store = connection.store("b").await.unwrap();
    let error = in_crowd(&store, connection.delete_store("b")).await.unwrap_err();
    assert_names(&error, "$JS.API.STREAM.DELETE.KV_b");
    let config = StoreConfig::new().history(5).reconcile();
    let error = in_crowd(&store, connection.store_with_config("b", config)).await.unwrap_err();
    assert_names(&error, "$JS.API.STREAM.UPDATE.KV_b");
    assert!(app.get("key").await.unwrap().is_some());
}

#[tokio::test]
async fn allowed_commands_in_a_crowd_are_executed() {
    let server = Rights::all_but(["$KV.b.secret.>"]).start();
    let (admin, _app) = open(&server, "b").await;
    admin.put("key", "value").await.unwrap();
    let connection = connect_as(&server, "app").await;
    let store = connection.store("b").await.unwrap();
    let config = StoreConfig::new().history(5).reconcile();
    in_crowd(&store, connection.store_with_config("b", config)).await.unwrap();
    assert!(admin.get("key").await.unwrap().is_some());
    in_crowd(&store, connection.delete_store("b")).await.unwrap();
    let error = admin.get("key").await.unwrap_err();
    assert!(matches!(error, KvError::StoreNotFound { .. }), "{error}");
}
