//! Tests with stores in memory, and with handmade watches.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use futures_util::stream;

use super::*;
use crate::store::{Connection, Key, KvEntry, VersionToken};

async fn connection() -> impl Connection {
    crate::connect("memory:").await.unwrap()
}

fn put(version: u64) -> KvUpdate {
    let (key, version) = (Key::new("key").unwrap(), VersionToken::from_u64(version));
    KvEntry::put(key, Bytes::new(), version, UNIX_EPOCH).into()
}

/// Returns a follower over a watch with these items. A connection state is set in the poll that
/// delivers the item.
async fn over(items: Vec<(Option<WatchLink>, Result<KvUpdate, KvError>)>) -> Follower {
    let store = connection().await.store("store").await.unwrap();
    let (links, link) = watch::channel(WatchLink::Up);
    let mut items = items.into_iter();
    let items = stream::poll_fn(move |_| {
        let Some((link, item)) = items.next() else { return Poll::Pending };
        if let Some(link) = link {
            links.send_replace(link);
        }
        let cursor = WatchCursor::new([0; 16], 0, UNIX_EPOCH);
        Poll::Ready(Some(item.map(|update| (update, cursor))))
    });
    Follower::over(&store, Watch::new(items).with_link(link))
}

async fn events(follower: &mut Follower, count: usize) -> Vec<String> {
    let mut events = Vec::new();
    for _ in 0..count {
        let event = match follower.next().await {
            Event::Opened => "opened".to_owned(),
            Event::Update(update) => {
                let version = update.into_entry().and_then(|entry| entry.version.as_u64());
                version.map_or_else(String::new, |version| version.to_string())
            }
            Event::CaughtUp { is_empty } => format!("caught up, empty: {is_empty}"),
            Event::LinkChanged => "link".to_owned(),
            Event::Lost(_) => "lost".to_owned(),
            Event::Closed(_) => "closed".to_owned(),
        };
        let is_up = if follower.link().is_up() { "up" } else { "down" };
        events.push(format!("{event}, {is_up}"));
    }
    events
}

fn since(follower: &Follower) -> SystemTime {
    match follower.link() {
        WatchLink::Down { since, .. } => *since,
        WatchLink::Up => panic!("the link is up"),
    }
}

#[tokio::test]
async fn loss_of_connection_precedes_the_update_of_its_poll() {
    let down = WatchLink::down(UNIX_EPOCH, "test");
    let items = vec![
        (None, Ok(put(1))),
        (Some(down), Ok(put(2))),
        (Some(WatchLink::Up), Err(KvError::StoreNotFound { store: "store".to_owned() })),
    ];
    let mut follower = over(items).await;
    assert_eq!(
        events(&mut follower, 5).await,
        ["1, up", "link, down", "2, down", "link, up", "lost, down"]
    );
}

#[tokio::test]
async fn caught_up_says_whether_an_entry_came() {
    let mut follower = over(vec![(None, Ok(KvUpdate::CaughtUp))]).await;
    assert_eq!(events(&mut follower, 1).await, ["caught up, empty: true, up"]);
    let mut follower = over(vec![(None, Ok(put(1))), (None, Ok(KvUpdate::CaughtUp))]).await;
    assert_eq!(events(&mut follower, 2).await, ["1, up", "caught up, empty: false, up"]);
}

#[tokio::test]
async fn link_is_down_until_the_next_watch_delivers() {
    let connection = connection().await;
    let store = connection.store("store").await.unwrap();
    for mut follower in [
        Follower::shared(&store, WatchScope::All),
        Follower::shared(&store, WatchScope::key("key").unwrap()),
        Follower::own(&store, WatchScope::All, None),
    ] {
        assert_eq!(events(&mut follower, 2).await, ["opened, down", "caught up, empty: true, up"]);
        follower.lose_after_difference();
        assert_eq!(events(&mut follower, 2).await, ["opened, down", "caught up, empty: true, up"]);
    }
}

#[tokio::test(start_paused = true)]
async fn losses_share_the_first_moment_and_their_pauses_grow() {
    let connection = connection().await;
    let store = connection.store("store").await.unwrap();
    let mut follower = Follower::shared(&store, WatchScope::All);
    events(&mut follower, 2).await;
    connection.delete_store("store").await.unwrap();
    assert_eq!(events(&mut follower, 1).await, ["lost, down"]);
    let first = since(&follower);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let before = Instant::now();
        assert_eq!(events(&mut follower, 1).await, ["lost, down"]);
        pauses.push(before.elapsed());
        assert_eq!(since(&follower), first);
    }
    assert!(pauses[0] >= FIRST_PAUSE && pauses[0] < FIRST_PAUSE * 4, "{pauses:?}");
    assert!(pauses[9] >= LONGEST_SHARED_PAUSE, "{pauses:?}");
    follower.reset_pauses();
    let before = Instant::now();
    events(&mut follower, 1).await;
    assert!(before.elapsed() < FIRST_PAUSE * 4);
}

/// The age of the watch counts, because a quiet key has no later update.
#[tokio::test(start_paused = true)]
async fn lasting_watch_resets_the_pauses() {
    for (age, is_reset) in [(LASTING / 2, false), (LASTING, true)] {
        let lost = KvError::StoreNotFound { store: "store".to_owned() };
        let mut follower = over(vec![(None, Ok(put(1))), (None, Err(lost))]).await;
        follower.pauses = Some(backoff(FIRST_PAUSE, LONGEST_PAUSE));
        assert_eq!(events(&mut follower, 1).await, ["1, up"]);
        tokio::time::advance(age).await;
        assert_eq!(events(&mut follower, 1).await, ["lost, down"]);
        assert_eq!(follower.pauses.is_none(), is_reset, "after {age:?}");
    }
}

#[tokio::test]
async fn shutdown_closes_the_follower() {
    let connection = connection().await;
    let store = connection.store("store").await.unwrap();
    let mut follower = Follower::shared(&store, WatchScope::All);
    events(&mut follower, 2).await;
    connection.shutdown().await.unwrap();
    assert_eq!(events(&mut follower, 1).await, ["closed, up"]);
    assert!(follower.next().now_or_never().is_none());
}

#[tokio::test]
async fn stopped_follower_waits_for_a_start() {
    let connection = connection().await;
    let store = connection.store("store").await.unwrap();
    let mut follower = Follower::shared(&store, WatchScope::All);
    follower.stop();
    assert!(!follower.is_started() && follower.next().now_or_never().is_none());
    follower.start();
    assert_eq!(events(&mut follower, 1).await, ["opened, down"]);
}

#[tokio::test]
async fn reopening_resumes_from_the_cursor() {
    let connection = connection().await;
    let store = connection.store("store").await.unwrap();
    store.put("a", "").await.unwrap();
    let mut follower = Follower::own(&store, WatchScope::All, None);
    assert_eq!(events(&mut follower, 2).await, ["opened, down", "1, up"]);
    let cursor = follower.cursor();
    store.put("b", "").await.unwrap();
    // The replacement of an open watch is no loss.
    follower.reopen_from(cursor);
    assert_eq!(events(&mut follower, 2).await, ["opened, up", "2, up"]);
    // After a loss, the cursor is used when the pause ends.
    follower.lose_after_difference();
    follower.reopen_from(cursor);
    assert_eq!(events(&mut follower, 2).await, ["opened, down", "2, up"]);
}
