//! The listed buckets: those of others, those that others deleted, and mirrors.

use async_nats::jetstream::{kv, stream};
use shizuku_kv::{KvError, KvUpdate, WatchScope};
use shizuku_kv_tests::{eventually, unique};

use super::{World, listed, names, next, next_entry, within};

#[tokio::test]
async fn buckets_of_others_are_listed_and_deleted() {
    let (world, ours, _theirs) = World::made_by_them(kv::Config::default()).await;
    let long = format!("{}-{}", world.bucket, "x".repeat(64));
    let config = kv::Config { bucket: long.clone(), ..kv::Config::default() };
    world.context.create_key_value(config).await.unwrap();
    let plain = unique("no-bucket");
    world
        .context
        .create_stream(stream::Config { name: plain.clone(), ..stream::Config::default() })
        .await
        .unwrap();

    let stores = world.connection.list_stores().try_collect().await.unwrap();
    assert!(stores.contains(&world.bucket));
    // `store` rejects the name.
    assert!(!stores.contains(&long), "{stores:?}");
    assert!(!stores.iter().any(|name| name.contains(&plain)), "{stores:?}");
    world.context.delete_key_value(&long).await.unwrap();

    world.connection.delete_store(&world.bucket).await.unwrap();
    assert!(world.context.get_key_value(&world.bucket).await.is_err());
    let gone = ours.get("k").await.unwrap_err();
    assert!(matches!(gone, KvError::StoreNotFound { .. }), "{gone:?}");
}

#[tokio::test]
async fn bucket_deleted_by_other_client_is_gone() {
    let (world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    theirs.put("k", "x".into()).await.unwrap();
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "x");
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    world.context.delete_key_value(&world.bucket).await.unwrap();
    for error in [
        ours.get("k").await.unwrap_err(),
        ours.put("k", "y").await.unwrap_err(),
        ours.get_many(["a", "b", "c", "d", "e"]).await.unwrap_err(),
        within("the watch ends", watch.next()).await.unwrap().unwrap_err(),
    ] {
        assert!(matches!(error, KvError::StoreNotFound { .. }), "{error:?}");
    }
    let lists = world.connection.list_stores().try_collect().await.unwrap();
    assert!(!lists.contains(&world.bucket));
}

#[tokio::test]
async fn mirror_is_rejected_or_read_and_never_empty() {
    let (world, _ours, theirs) = World::made_by_them(kv::Config::default()).await;
    theirs.put("k", "origin".into()).await.unwrap();
    let mirror = unique("mirror");
    let config = kv::Config {
        bucket: mirror.clone(),
        mirror: Some(stream::Source { name: world.stream(), ..stream::Source::default() }),
        mirror_direct: true,
        ..kv::Config::default()
    };
    world.context.create_key_value(config).await.unwrap();
    let copy = world.context.get_stream(format!("KV_{mirror}")).await.unwrap();
    eventually("the mirror has its message", async || {
        copy.clone().info().await.unwrap().state.messages == 1
    })
    .await;
    match world.connection.store(&mirror).await {
        Ok(store) => {
            let found = store.get("k").await.unwrap().expect("the mirror's value");
            assert_eq!(found.value, "origin");
            assert_eq!(listed(&store).await, names(["k"]));
        }
        Err(error) => assert!(matches!(error, KvError::Unsupported { .. }), "{error:?}"),
    }
}
