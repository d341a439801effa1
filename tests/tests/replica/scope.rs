//! A replica whose scope has changed.

use shizuku_kv::WatchScope;
use shizuku_kv::replica::Replica;

use crate::disk::Disk;
use crate::support::{Follower, sorted, stores, write};

#[tokio::test]
async fn changed_scope_vanishes_old_keys_and_delivers_new_ones() {
    for (_connection, store) in stores().await {
        write(&store, &["in.a=1", "in.b=1", "out.a=1", "on.a=1"]).await;
        let disk = Disk::new();
        let run = async |scope: WatchScope| {
            let mut follower = Follower::start(Replica::new(&store, scope).storage(disk.clone()));
            let told = sorted(follower.asks.up_to(".").await);
            let monitor = follower.monitor.clone();
            follower.stop().await;
            (told, monitor.progress().resyncs)
        };
        let owned =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let prefixes = |prefixes: &[&str]| WatchScope::prefixes(prefixes.iter().copied());
        assert_eq!(
            run(prefixes(&["in.", "on."])).await,
            (owned(&[".", "in.a=1", "in.b=1", "on.a=1"]), 0)
        );
        // The same scope, written differently, is the same.
        assert_eq!(run(prefixes(&["on.", "in.", "on."])).await, (owned(&["."]), 0));
        // A smaller scope.
        assert_eq!(run(WatchScope::prefix("in.")).await, (owned(&[".", "~on.a"]), 1));
        assert_eq!(run(WatchScope::prefix("in.")).await, (owned(&["."]), 0));
        // An overlapping scope, after a change.
        write(&store, &["in.a=2", "in.c=1"]).await;
        let keys = WatchScope::keys(["in.a", "out.a"]).unwrap();
        assert_eq!(run(keys.clone()).await, (owned(&[".", "in.a=2", "out.a=1", "~in.b"]), 1));
        // All keys, and none.
        let (told, resyncs) = run(WatchScope::All).await;
        assert_eq!((told, resyncs), (owned(&[".", "in.b=1", "in.c=1", "on.a=1"]), 1));
        assert_eq!(disk.words(), ["in.a=2", "in.b=1", "in.c=1", "on.a=1", "out.a=1"]);
        assert_eq!(run(WatchScope::prefix("none.")).await.1, 1);
        assert_eq!(disk.words(), [""; 0]);
        // A replica that holds nothing has nothing to resync.
        assert_eq!(run(WatchScope::prefix("on.")).await, (owned(&[".", "on.a=1"]), 0));
    }
}
