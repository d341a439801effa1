//! Stores that are deleted and recreated while processes remember the old one. Versions then start
//! over, so that new entries look older than known ones.

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockOptions};

use crate::adversity::world::{LEASE, Process, RECORD, STEADY_LEASE, World, lock_of, pass, within};

/// Runs a test in memory, with a clock that moves only while it waits, then on a server.
async fn on_both(test: impl AsyncFn(World)) {
    tokio::time::pause();
    println!("in memory");
    test(World::in_memory().await).await;
    tokio::time::resume();
    println!("on NATS");
    test(World::on_nats().await).await;
}

/// Makes changes, so that the versions of a new store are far lower.
async fn use_it(process: &Process) {
    for _ in 0..10 {
        process.lock().write().await.unwrap().release().await.unwrap();
    }
}

/// Otherwise a process would wait for a version that never comes, or hold a lock under a session
/// that does not exist.
async fn free_lock_is_granted(mut world: World) {
    let [one] = world.processes().await;
    use_it(&one).await;
    world.recreate(&[&one]).await;
    // The first attempts may use the session of the old store, whose loss is detected at its next
    // renewal.
    let guard = within(10, "it is granted under a session of the new store", async {
        loop {
            let guard = one.lock().write().await.unwrap();
            let holders = world.state().await.holders;
            let key =
                holders.first().map(|holder| format!("rw_lock_session.{}", holder.claim.session));
            let sessions = world.sessions().await;
            if key.is_some_and(|key| sessions.contains(&key)) {
                break guard;
            }
            guard.release().await.ok();
            pass(LEASE / 10).await;
        }
    });
    let guard = guard.await;
    assert_eq!(world.state().await.holders.len(), 1);
    pass(2 * LEASE).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    world.held_by(0).await;
}

#[tokio::test]
async fn free_lock_of_recreated_store_is_granted() {
    on_both(free_lock_is_granted).await;
}

/// Otherwise a process that considers the new record old would not see its holder, or would wait
/// for ever.
async fn held_lock_is_waited_for(mut world: World) {
    let [one] = world.processes().await;
    use_it(&one).await;
    world.recreate(&[&one]).await;
    let [other] = world.processes().await;
    let theirs = other.lock().write().await.unwrap();
    let waiting = one.start_waiting();
    within(10, "it is queued", world.in_line(1)).await;
    let rejected = one.lock().try_write().await.map(drop).unwrap_err();
    assert!(matches!(rejected, DistroRwLockError::WouldBlock { .. }), "{rejected:?}");
    assert!(theirs.is_held() && !waiting.is_finished());
    theirs.release().await.unwrap();
    let guard = within(10, "it is granted", waiting).await.unwrap().unwrap();
    pass(2 * LEASE).await;
    assert!(guard.is_held());
}

#[tokio::test]
async fn held_lock_of_recreated_store_is_waited_for() {
    on_both(held_lock_is_waited_for).await;
}

/// Otherwise a holder in the old store would rely on its lock, or release another's lock in the new
/// one.
async fn held_lock_is_lost(mut world: World) {
    let [one, other] = world.processes().await;
    use_it(&one).await;
    let held = one.lock().write().await.unwrap();
    let waiting = other.start_waiting();
    world.in_line(1).await;
    world.recreate(&[&one, &other]).await;
    within(10, "the holder is notified", held.lost()).await;
    let error = held.release().await.unwrap_err();
    assert!(matches!(error, DistroRwLockError::LeaseLost { .. }), "{error:?}");
    // The waiter continues in the new store, or is told that the old one is gone.
    match within(10, "the wait comes to an end", waiting).await.unwrap() {
        Ok(guard) => guard.release().await.unwrap(),
        Err(DistroRwLockError::Store { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    let guard = within(10, "it is free", other.lock().write()).await.unwrap();
    pass(2 * LEASE).await;
    assert!(guard.is_held());
    assert_eq!(world.state().await.holders.len(), 1);
}

#[tokio::test]
async fn lock_of_deleted_store_is_lost() {
    on_both(held_lock_is_lost).await;
}

/// Stores live sessions under all keys that a new session could use, except one.
async fn occupy_all_but(world: &World, key: &str) {
    let (before, number) = key.rsplit_once('.').unwrap();
    let session = r#"{"shizuku_lock_session":2,"nonce":"1","lease_ms":3600000,"renewal":0}"#;
    for other in (0..8).map(|other| other.to_string()).filter(|other| other != number) {
        world.observer.put(format!("{before}.{other}"), session).await.unwrap();
    }
}

/// Without a salt a renewal of the deleted store would replace the entry of the new session.
/// Without a new read its process would replace the new record. Both have the very versions that
/// they had in the deleted store.
async fn holder_survives_writes_from_deleted_store(mut world: World) {
    let [one] = world.processes().await;
    for number in 0..7 {
        one.store.put(format!("another.{number}"), "x").await.unwrap();
    }
    let old = one.lock().write().await.unwrap();
    let (key, record) = (world.key_of_holder().await, world.record().await.unwrap());
    let session = world.observer.entry(&*key).await.unwrap().unwrap();
    world.recreate(&[&one]).await;
    occupy_all_but(&world, &key).await;
    let [other] = world.processes().await;
    let held = other.lock().write().await.unwrap();
    assert_eq!(world.record().await.unwrap().version, record.version);
    let new = world.observer.entry(world.key_of_holder().await).await.unwrap().unwrap();
    assert_eq!(new.version, session.version);
    within(5, "the old holder is notified", old.lost()).await;
    pass(2 * LEASE).await;
    assert!(held.is_held(), "{:?}", held.lost().await);
    assert_eq!(world.state().await.holders.len(), 1);
    held.release().await.unwrap();
}

#[tokio::test]
async fn writes_from_deleted_store_do_not_affect_holder() {
    on_both(holder_survives_writes_from_deleted_store).await;
}

/// A key of the deleted store can still receive renewals from before the deletion.
async fn old_handle_uses_session_keys_of_new_store(mut world: World) {
    let [one] = world.processes().await;
    drop(one.lock().write().await.unwrap());
    within(5, "its session ends", async {
        while !world.sessions().await.is_empty() {
            pass(LEASE / 10).await;
        }
    })
    .await;
    world.recreate(&[&one]).await;
    let [other] = world.processes().await;
    // The handle of the deleted store is the first to open a session.
    let held =
        within(5, "it is granted", lock_of(&one.store, "another", LEASE).write()).await.unwrap();
    let theirs = within(5, "it is granted", other.lock().write()).await.unwrap();
    let keys = world.sessions().await;
    let part = |key: &String| key.split('.').nth(1).map(str::to_owned);
    assert!(keys.len() == 2 && part(&keys[0]) == part(&keys[1]), "{keys:?}");
    pass(2 * LEASE).await;
    assert!(held.is_held() && theirs.is_held());
}

#[tokio::test]
async fn session_keys_of_old_handle_are_those_of_new_store() {
    on_both(old_handle_uses_session_keys_of_new_store).await;
}

/// A process of the deleted store may write its claim after the deletion. A key that is created to
/// end such a session would look like a key of the new store.
#[tokio::test(start_paused = true)]
async fn claim_of_deleted_store_is_evicted_without_a_key() {
    let mut world = World::in_memory().await;
    let [one] = world.processes().await;
    let _held = one.lock().write().await.unwrap();
    let (key, record) = (world.key_of_holder().await, world.record().await.unwrap());
    one.faults.crash();
    world.recreate(&[]).await;
    world.observer.put(RECORD, record.value).await.unwrap();
    let [other] = world.processes().await;
    let options = LockOptions::new().lease(STEADY_LEASE).wait(200 * LEASE);
    let lock = DistroRwLock::with_options(&other.store, "r", options).unwrap();
    // A session without a key is considered alive for a minute.
    let guard = within(90, "it is granted", lock.write()).await.unwrap();
    assert!(guard.is_held());
    assert_eq!(world.observer.entry(&*key).await.unwrap(), None);
}
