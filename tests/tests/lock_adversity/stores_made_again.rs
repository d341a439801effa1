//! Stores that are deleted and made again while processes remember the old one. Versions count from the start then, so
//! that what is new looks older than what was seen.

use shizuku_kv::rw_lock::DistroRwLockError;

use crate::world::{LEASE, Process, World, goes_by, within};

/// Makes the store again. On a server the handles that are there go on with it; in memory ours do as if they did.
async fn make_again(world: &mut World, processes: &[&Process], is_on_nats: bool) {
    world.make_again(if is_on_nats { &[] } else { processes }).await;
}

/// Makes changes, so that the versions of a new store are far behind. Sessions begin after some of
/// them, because a renewal that meets the very same version in the new store is accepted there
/// (ADR 0054).
async fn use_it(process: &Process) {
    for _ in 0..200 {
        process.store.put("another", "x").await.unwrap();
    }
    for _ in 0..10 {
        process.lock().write().await.unwrap().release().await.unwrap();
    }
}

/// Else a process would wait for a version that never comes, or have a lock under a session that is not there.
async fn a_free_lock_is_granted(mut world: World, is_on_nats: bool) {
    let [one] = world.processes().await;
    use_it(&one).await;
    make_again(&mut world, &[&one], is_on_nats).await;
    let guard = within(5, "it is granted", one.lock().write()).await.unwrap();
    // That one may be under the session of the old store, whose loss is found out at its next renewal.
    drop(guard);
    goes_by(LEASE).await;
    let guard = within(5, "it is granted again", one.lock().write()).await.unwrap();
    assert_eq!(world.state().await.holders.len(), 1);
    goes_by(3 * LEASE).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    world.held_by(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_free_lock_of_a_store_that_is_made_again_is_granted_in_memory() {
    a_free_lock_is_granted(World::in_memory().await, false).await;
}

#[tokio::test]
async fn a_free_lock_of_a_store_that_is_made_again_is_granted_on_nats() {
    a_free_lock_is_granted(World::on_nats().await, true).await;
}

/// Else a process that takes the new record for an old one would not see its holder, or would wait for ever.
async fn a_lock_that_another_holds_is_not_granted(mut world: World, is_on_nats: bool) {
    let [one] = world.processes().await;
    use_it(&one).await;
    make_again(&mut world, &[&one], is_on_nats).await;
    let [other] = world.processes().await;
    let theirs = other.lock().write().await.unwrap();
    let waiting = one.starts_to_wait();
    within(10, "it stands in line", world.in_line(1)).await;
    let refused = one.lock().try_write().await.map(drop).unwrap_err();
    assert!(matches!(refused, DistroRwLockError::WouldBlock { .. }), "{refused:?}");
    assert!(theirs.is_held() && !waiting.is_finished());
    theirs.release().await.unwrap();
    let guard = within(5, "it gets in", waiting).await.unwrap().unwrap();
    goes_by(3 * LEASE).await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_another_holds_in_a_store_that_is_made_again_is_waited_for_in_memory() {
    a_lock_that_another_holds_is_not_granted(World::in_memory().await, false).await;
}

#[tokio::test]
async fn a_lock_that_another_holds_in_a_store_that_is_made_again_is_waited_for_on_nats() {
    a_lock_that_another_holds_is_not_granted(World::on_nats().await, true).await;
}

/// Else who held it in the old store would believe in it, or let go of what is another's in the new one.
async fn what_was_held_is_lost(mut world: World, is_on_nats: bool) {
    let [one, other] = world.processes().await;
    use_it(&one).await;
    let held = one.lock().write().await.unwrap();
    let waiting = other.starts_to_wait();
    world.in_line(1).await;
    make_again(&mut world, &[&one, &other], is_on_nats).await;
    within(5, "the holder is told", held.lost()).await;
    let error = held.release().await.unwrap_err();
    assert!(matches!(error, DistroRwLockError::LeaseLost { .. }), "{error:?}");
    // Who waited goes on in the new store, or is told that the old one is gone.
    match within(10, "the wait comes to an end", waiting).await.unwrap() {
        Ok(guard) => guard.release().await.unwrap(),
        Err(DistroRwLockError::Store { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    let guard = within(5, "it is free", other.lock().write()).await.unwrap();
    goes_by(3 * LEASE).await;
    assert!(guard.is_held());
    assert_eq!(world.state().await.holders.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_held_in_a_store_that_is_made_again_is_lost_in_memory() {
    what_was_held_is_lost(World::in_memory().await, false).await;
}

#[tokio::test]
async fn what_was_held_in_a_store_that_is_made_again_is_lost_on_nats() {
    what_was_held_is_lost(World::on_nats().await, true).await;
}
