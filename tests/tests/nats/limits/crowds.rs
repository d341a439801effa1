//! More writes than a server queues: it answers "too many requests", and did not make any of those.

use futures_util::future::join_all;
use shizuku_kv::{StorageType, StoreConfig, VersionToken};
use shizuku_kv_tests::{NatsServer, NatsServerBuilder};

use super::{PATIENCE, World, within};

fn store_config() -> StoreConfig {
    StoreConfig::new().storage(StorageType::Memory).deadline(PATIENCE)
}

/// Servers before 2.11 have no such limit.
fn narrow(limits: &str) -> Option<NatsServerBuilder> {
    let version = NatsServer::shared();
    version.is_at_least(2, 11).then(|| NatsServer::builder().jetstream_config(limits))
}

/// At the server's own limits, 128 MB of writes wait at most. A server that syncs each write is
/// slower than a client sends. The first write of each key could not be sent again. A limit just
/// above the bytes in flight shows the bound on a fast disk too.
#[tokio::test]
async fn put_many_bounds_bytes_in_flight() {
    let always = Some(NatsServer::builder().jetstream_config("sync_interval: always"));
    let narrow = narrow("sync_interval: always, max_buffered_size: 44MB");
    for server in [always, narrow].into_iter().flatten() {
        let config = store_config().storage(StorageType::File).history(2);
        let (_world, store) = World::with_store(server, config).await;
        let value = bytes::Bytes::from(vec![7; 1000 * 1000]);
        let items = (0..400).map(|number| (format!("key-{}", number % 200), value.clone()));
        let answers = within("put_many", store.put_many(items)).await;
        let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} of 400 failed, the first: {}", failed.len(), failed[0]);
    }
}

#[tokio::test]
async fn put_many_retries_too_many_requests() {
    for limits in ["max_buffered_msgs: 8", "max_buffered_size: 256KB"] {
        let Some(server) = narrow(limits) else { return };
        let (_world, store) = World::with_store(server, store_config()).await;
        let value = bytes::Bytes::from(vec![7; 10_000]);
        let items = (0..2000).map(|number| (format!("key-{number}"), value.clone()));
        let answers = within("put_many", store.put_many(items)).await;
        let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert!(
            failed.is_empty(),
            "{limits}: {} of 2000 failed, the first: {}",
            failed.len(),
            failed[0]
        );
    }
}

/// Writes of one key take effect in their order, even if the server accepts only some of them.
#[tokio::test]
async fn put_many_of_one_key_keeps_the_order() {
    let Some(server) = narrow("max_buffered_msgs: 8") else { return };
    let config = store_config().history(64);
    let (_world, store) = World::with_store(server, config).await;
    let items = (0..3000_u32).map(|number| (format!("key-{}", number % 50), number.to_string()));
    let answers = within("put_many", store.put_many(items)).await;
    let mut newest: [Option<(u32, VersionToken)>; 50] = [None; 50];
    for (number, answer) in (0..3000_u32).zip(answers) {
        match answer {
            Ok(version) => {
                let before = newest[(number % 50) as usize].replace((number, version));
                assert!(
                    before.is_none_or(|(_, before)| before.as_u64() < version.as_u64()),
                    "{number}"
                );
            }
            Err(error) => assert!(error.is_retryable(), "{number}: {error}"),
        }
    }
    for (key, newest) in newest.into_iter().enumerate() {
        let entry = store.get(format!("key-{key}")).await.unwrap().unwrap();
        let (number, version) = newest.unwrap();
        assert_eq!((entry.value.as_ref(), entry.version), (number.to_string().as_bytes(), version));
    }
}

#[tokio::test]
async fn concurrent_writes_retry_too_many_requests() {
    let Some(server) = narrow("max_buffered_msgs: 8") else { return };
    let (_world, store) = World::with_store(server, store_config()).await;
    let value = bytes::Bytes::from(vec![7; 10_000]);
    let puts = (0..1000).map(async |number| {
        let key = format!("key-{number}");
        let version = match number % 2 {
            0 => store.put(key.as_str(), value.clone()).await?,
            _ => store.create(key.as_str(), value.clone()).await?,
        };
        match number % 4 {
            0 | 1 => store.update(key.as_str(), value.clone(), version).await,
            2 => store.delete_with_version(key.as_str(), version).await,
            _ => store.purge(key.as_str()).await,
        }
    });
    let answers = within("writes", join_all(puts)).await;
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of 1000 failed, the first: {}", failed.len(), failed[0]);
}

/// If every attempt fails until the deadline, the error says so, and the write can be repeated.
#[tokio::test]
async fn too_many_requests_at_deadline_is_retryable() {
    let Some(server) = narrow("max_buffered_size: 1KB") else { return };
    let (_world, store) =
        World::with_store(server, store_config().deadline(4 * super::SHORT)).await;
    // Larger than the whole queue.
    let answers = join_all((0..50).map(|_| store.put("key", vec![7; 100_000]))).await;
    for answer in answers.into_iter().filter(Result::is_err) {
        super::assert_rejected(answer, "LimitReached", true, &["too many requests"]);
    }
}
