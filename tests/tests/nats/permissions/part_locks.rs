//! Locks and elections of a user with rights to a part of a bucket.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LeaderElection, LockOptions};
use shizuku_kv::{
    Connection, KeyValue, KvError, LiveRead, NatsConnection, Store, StoreConfig, nats_connect,
};
use shizuku_kv_tests::{NatsServer, eventually};
use tokio::runtime::{Builder, Runtime};

use super::operations::prepared;
use super::rights::{PATIENCE, at_once, config_of};
use super::tables::{Row, inbox_prefix, rights, rows};

const LEASE: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize, Deserialize, KeyValue)]
#[kv(key = "part.sized.{number}", codec = json)]
struct Sized {
    number: u32,
}

/// Returns the rows of a part, and the same for each of `prefixes`.
fn rows_with(prefixes: &[&str]) -> Vec<Row> {
    let mut rows = rows("A part of a bucket");
    let of_part: Vec<_> =
        rows.iter().filter(|row| row.subject.contains(".part.")).cloned().collect();
    for prefix in prefixes {
        rows.extend(of_part.iter().cloned().map(|mut row| {
            row.subject = row.subject.replace(".part.", &format!(".{prefix}."));
            row
        }));
    }
    rows
}

async fn started(rows: &[Row]) -> NatsServer {
    let server = rights(rows, str::to_owned).start();
    prepared(&server).await;
    server
}

async fn connected(server: &NatsServer, rows: &[Row]) -> (NatsConnection, Store) {
    let app =
        nats_connect(config_of(server, "app").inbox_prefix(inbox_prefix(rows))).await.unwrap();
    let store = app.store_with_config("x", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
    (app, store)
}

fn options() -> LockOptions {
    LockOptions::new().lease(LEASE)
}

fn lock_of(store: &Store) -> DistroRwLock {
    DistroRwLock::with_options(store, "r", options()).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Returns the number of requests for consumers that the server has denied.
fn denied_consumers(server: &NatsServer) -> usize {
    server
        .log()
        .lines()
        .filter(|line| line.contains("Violation") && line.contains("CONSUMER.CREATE"))
        .count()
}

#[tokio::test]
async fn locks_with_their_part_work() {
    let rows = rows_with(&["rw_lock", "rw_lock_session"]);
    let server = started(&rows).await;
    let (_app, store) = connected(&server, &rows).await;
    let lock = lock_of(&store);
    for _ in 0..2 {
        let guard = at_once("lock", lock.write()).await.unwrap();
        let token = guard.fencing_token();
        let fenced = store.fenced().unwrap();
        at_once("fenced put", fenced.put("part.a.1", "fenced", token)).await.unwrap();
        at_once("release", guard.release()).await.unwrap();
    }
    let error = store
        .fenced()
        .unwrap()
        .put("part.a.1", "late", shizuku_kv::FencingToken::from_u64(0))
        .await;
    assert!(matches!(error, Err(KvError::Fenced { .. })), "{error:?}");
}

/// A waiter watches two sessions. If it may not watch several keys at once, it watches each alone.
#[test]
fn waiters_of_a_part_notice_a_dead_holder() {
    let living = runtime();
    let rows = rows_with(&["rw_lock", "rw_lock_session", "rw_lock_leader"]);
    let server = living.block_on(started(&rows));
    let dying = runtime();
    let dead = dying.block_on(async {
        let (app, store) = connected(&server, &rows).await;
        let election = LeaderElection::with_options(&store, "e", "dead", options()).unwrap();
        (lock_of(&store).write().await.unwrap(), election.campaign().await.unwrap(), app)
    });
    living.block_on(async {
        let mut waiters = Vec::new();
        for _ in 0..3 {
            let (app, store) = connected(&server, &rows).await;
            let lock = lock_of(&store);
            waiters.push((tokio::spawn(async move { lock.write().await }), store, app));
        }
        let (_, store, _) = &waiters[0];
        let state = lock_of(store);
        eventually("all wait", async || state.inspect().await.unwrap().waiting.len() == 3).await;
        let election = LeaderElection::with_options(store, "e", "next", options()).unwrap();
        let next = tokio::spawn(async move { election.campaign().await });
        dying.shutdown_background();
        std::mem::forget(dead);
        for (waiter, ..) in &mut waiters {
            waiter.await.unwrap().unwrap().release().await.unwrap();
        }
        let _leadership = next.await.unwrap().unwrap();
        // Each process tries several keys at once only once.
        assert!(denied_consumers(&server) <= 8, "{}", denied_consumers(&server));
    });
}

#[tokio::test]
async fn waiters_that_may_not_watch_are_unauthorized() {
    let all = rows_with(&["rw_lock", "rw_lock_session"]);
    for hidden in ["rw_lock", "rw_lock_session"] {
        let right = format!("$JS.API.CONSUMER.CREATE.KV_x.*.$KV.x.{hidden}.>");
        let rows: Vec<_> = all.iter().filter(|row| row.subject != right).cloned().collect();
        let server = started(&rows).await;
        let (_holder, store) = connected(&server, &rows).await;
        let guard = at_once("lock", lock_of(&store).write()).await.unwrap();
        let (_waiter, other) = connected(&server, &rows).await;
        let error = at_once("wait", lock_of(&other).write()).await.unwrap_err();
        let DistroRwLockError::Store { source, .. } = &error else { panic!("{error:?}") };
        let prefix = right.trim_end_matches('>');
        assert!(matches!(source, KvError::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains(prefix), "{error}");
        // A user that may not watch the record may not confirm it either, so that its claim stays
        // in line until its session ends.
        if hidden == "rw_lock_session" {
            let state = lock_of(&store);
            eventually("it left the line", async || {
                state.inspect().await.unwrap().waiting.is_empty()
            })
            .await;
            at_once("release", guard.release()).await.unwrap();
        }
    }
}

/// Contenders request their changes from each other. Without the right to requests they swap.
#[tokio::test]
async fn contended_locks_of_a_part_need_no_requests() {
    for has_right in [false, true] {
        let mut prefixes = vec!["rw_lock", "rw_lock_session"];
        prefixes.extend(has_right.then_some("rw_lock_request"));
        let rows = rows_with(&prefixes);
        let server = started(&rows).await;
        let mut users = Vec::new();
        for _ in 0..6 {
            let (app, store) = connected(&server, &rows).await;
            users.push(tokio::spawn(async move {
                for _ in 0..30 {
                    lock_of(&store).read().await.unwrap().release().await.unwrap();
                }
                drop(app);
            }));
        }
        for user in users {
            user.await.unwrap();
        }
        let log = server.log();
        let is_denied =
            |line: &&str| line.contains("Violation") && line.contains("rw_lock_request");
        let denied = log.lines().filter(is_denied).count();
        assert_eq!(denied > 0, !has_right, "{denied} denials, right {has_right}");
    }
}

/// Watches of single keys are replaced by one of many, which this user may not open.
#[tokio::test]
async fn live_values_of_a_part_are_denied_once() {
    let rows = rows_with(&[]);
    let server = started(&rows).await;
    let (_app, store) = connected(&server, &rows).await;
    let mut values = Vec::new();
    for number in 0..40 {
        at_once(
            "put",
            store.put(format!("part.sized.{number}"), format!("{{\"number\":{number}}}")),
        )
        .await
        .unwrap();
        values.push(at_once("live", Sized::live_at(&store, number)).await.unwrap());
    }
    assert!(denied_consumers(&server) <= 2, "{}", denied_consumers(&server));
}
