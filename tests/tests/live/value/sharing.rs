//! Live values of one record share a watch and a task.

use futures_util::{FutureExt, StreamExt};
use shizuku_kv::{LiveStatic, connect};
use shizuku_kv_tests::{NatsServer, PATIENCE, eventually, unique};

use super::{Pool, put, until};
use crate::{Outcome, stores};

/// Each has its own view of the changes, and begins with every write that was acknowledged before.
#[tokio::test]
async fn live_values_of_a_record_and_type_share_a_task() -> Outcome {
    for (_connection, store) in stores().await {
        put(&store, 0).await;
        let mut lives = vec![Pool::live(&store).await?];
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let with_one = tasks();
        for size in 1..=30 {
            put(&store, size).await;
            lives.push(Pool::live(&store).await?);
            assert_eq!(lives[size as usize].load().size, size);
            until(&lives[0], |live| live.load().size == size).await;
            lives.push(Pool::live_or(&store, Pool::default()).await?);
            assert!(lives.pop().is_some_and(|live| live.load().size == size));
        }
        // Some were opened before the first task had received the value, and have their own.
        for _ in 0..30 {
            lives.push(Pool::live(&store).await?);
        }
        eventually("the handles share tasks", async || tasks() < with_one + 40).await;
        // The others continue without the first.
        lives.remove(0);
        let optional = Pool::live_optional(&store).await?;
        put(&store, 31).await;
        for live in &mut lives {
            while live.changed().await?.size != 31 {}
            assert!(live.status().is_current());
        }
        until(&optional, |live| live.load().as_ref().is_some_and(|pool| pool.size == 31)).await;
        drop((lives, optional));
        eventually("the tasks have ended", async || tasks() < with_one).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn covered_key_is_read_and_needs_no_consumer() -> Outcome {
    let server = NatsServer::shared();
    let store = connect(&server.url()).await?.store(&unique("covered")).await?;
    let client = async_nats::connect(server.url()).await.unwrap();
    let advisory = format!("$JS.EVENT.ADVISORY.CONSUMER.CREATED.KV_{}.*", store.name());
    let mut created = client.subscribe(advisory).await.unwrap();
    client.flush().await.unwrap();
    put(&store, 0).await;
    let first = Pool::live(&store).await?;
    assert!(tokio::time::timeout(PATIENCE, created.next()).await.unwrap().is_some());
    let mut lives = vec![first];
    for size in 1..20 {
        put(&store, size).await;
        lives.push(Pool::live(&store).await?);
        assert_eq!(lives[lives.len() - 1].load().size, size);
    }
    put(&store, 20).await;
    for live in &lives {
        until(live, |live| live.load().size == 20).await;
    }
    // An advisory would have arrived before this answer of the same server.
    server.consumers(store.name()).await;
    client.flush().await.unwrap();
    assert!(created.next().now_or_never().is_none(), "another consumer was created");
    Ok(())
}
