//! The session keys that many crashed processes have left.

use std::ops::Range;
use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, WriteGuard};

use crate::adversity::world::{LEASE, Process, STEADY_LEASE, World, lock_of, pass, within};

/// Number of renewals within which all keys have to be deleted.
const RENEWALS: u32 = 100;

/// Acquires a lock of its own.
async fn opens_session(process: &Process, lease: Duration) -> WriteGuard {
    lock_of(&process.store, "opens", lease).write().await.unwrap()
}

/// Returns the common part of the keys of sessions.
async fn prefix_of_keys(world: &World) -> String {
    let [process] = world.processes().await;
    let held = opens_session(&process, LEASE).await;
    let state = DistroRwLock::new(&world.observer, "opens").unwrap().inspect().await.unwrap();
    let key = format!("rw_lock_session.{}", state.holders[0].claim.session);
    held.release().await.unwrap();
    drop(process.store);
    within(5, "the key is deleted", async {
        while !world.sessions().await.is_empty() {
            pass(LEASE / 10).await;
        }
    })
    .await;
    key.rsplit_once('.').unwrap().0.to_owned()
}

/// Stores sessions with these numbers that are never renewed.
async fn leave_dead(world: &World, numbers: Range<u32>) {
    let prefix = prefix_of_keys(world).await;
    let session = r#"{"shizuku_lock_session":2,"nonce":"1","lease_ms":1000,"renewal":0}"#;
    let keys = numbers.map(|number| (format!("{prefix}.{number}"), session));
    for written in world.observer.put_many(keys).await {
        written.unwrap();
    }
}

/// A session that stays open deletes all keys, although it checks only some of them at once.
async fn living_session_deletes_all(world: World, lease: Duration) {
    leave_dead(&world, 0..200).await;
    let [process] = world.processes().await;
    let held = opens_session(&process, lease).await;
    for _ in 0..RENEWALS {
        if world.sessions().await.len() == 1 {
            break;
        }
        pass(lease / 3).await;
    }
    assert_eq!(world.sessions().await.len(), 1);
    assert!(held.is_held());
}

#[tokio::test(start_paused = true)]
async fn session_deletes_keys_of_many_crashed_processes() {
    living_session_deletes_all(World::in_memory().await, STEADY_LEASE).await;
}

#[tokio::test]
async fn session_deletes_keys_of_many_crashed_processes_on_nats() {
    living_session_deletes_all(World::on_nats().await, LEASE).await;
}

/// Each session ends some leases after it was opened. The search of each is random, so their number
/// is not fixed; most often it is less than twenty.
#[tokio::test(start_paused = true)]
async fn successive_sessions_delete_keys_of_crashed_processes() {
    const MOST: usize = 1000;
    let world = World::in_memory().await;
    leave_dead(&world, 0..500).await;
    for _ in 0..MOST {
        if world.sessions().await.is_empty() {
            break;
        }
        let [process] = world.processes().await;
        let held = opens_session(&process, STEADY_LEASE).await;
        pass(5 * STEADY_LEASE).await;
        held.release().await.unwrap();
        drop(process.store);
        pass(LEASE).await;
    }
    assert_eq!(world.sessions().await, [""; 0]);
}

/// The opening finds a free key before it reads any key of a crashed process.
#[tokio::test(start_paused = true)]
async fn keys_beyond_those_read_by_opening_are_deleted() {
    let world = World::in_memory().await;
    leave_dead(&world, 0..500).await;
    for key in world.sessions().await {
        let number: u32 = key.rsplit_once('.').unwrap().1.parse().unwrap();
        if number < 64 {
            world.observer.delete(&*key).await.unwrap();
        }
    }
    let [process] = world.processes().await;
    let held = opens_session(&process, STEADY_LEASE).await;
    pass(RENEWALS * STEADY_LEASE / 3).await;
    assert_eq!(world.sessions().await.len(), 1);
    held.release().await.unwrap();
}

/// The cost of searching for dead sessions ends if all others are alive.
#[tokio::test(start_paused = true)]
async fn session_without_dead_peers_sends_only_renewals() {
    const LEASES: usize = 30;
    let world = World::in_memory().await;
    let processes: [Process; 80] = world.processes().await;
    let mut guards = Vec::new();
    for (number, process) in processes.iter().enumerate() {
        let lock = lock_of(&process.store, &format!("r{number}"), STEADY_LEASE);
        guards.push(lock.write().await.unwrap());
    }
    pass(3 * STEADY_LEASE).await;
    let before = processes.each_ref().map(|process| process.faults.calls());
    pass(LEASES as u32 * STEADY_LEASE).await;
    for (process, before) in processes.iter().zip(before) {
        let sent = process.faults.calls() - before;
        assert!(sent <= 3 * LEASES + 3, "{sent} requests in {LEASES} leases");
    }
    assert_eq!(world.sessions().await.len(), processes.len());
}
