//! The comparison of a map with its store, beside the updates. Faults slow it down.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shizuku_kv::{
    Connection, Key, KvEntry, KvError, LiveRead, Store, StoreFigures, VersionToken, Watch,
    WatchLink, connect,
};
use shizuku_kv_tests::faulty::{Answer, Fault, FaultyStore, On, Plan};
use tokio::time::{Instant, sleep};

use super::{User, key, put, until};
use crate::Outcome;

/// Interval of the comparisons.
const INTERVAL: Duration = Duration::from_secs(60);

/// Returns a store in memory whose calls go through the plan.
async fn planned() -> (Arc<dyn Connection>, Store, Arc<Plan>) {
    let connection = connect("memory:").await.unwrap();
    let plan = Arc::new(Plan::default());
    let store = FaultyStore::over(&connection.store("live_map").await.unwrap(), &plan);
    (connection, store.with_comparison(INTERVAL), plan)
}

/// Returns a fault by which the figures count the keys, and are answered late. Each key of the
/// store was written once.
fn counted(wrong: u64, late: Duration) -> Fault {
    Fault::new(move |call, next| async move {
        let told = StoreFigures::try_from(next.call(call).await?)?;
        sleep(late).await;
        Ok(StoreFigures::counted(told.incarnation, told.newest, told.newest - wrong).into())
    })
}

#[tokio::test(start_paused = true)]
async fn updates_are_applied_while_a_comparison_is_slow() -> Outcome {
    let (_connection, store, plan) = planned().await;
    plan.add(On::call("figures"), Fault::delay(Duration::from_millis(4_900)));
    let users = User::live_map(&store).await?;
    for round in 1..=150 {
        put(&store, 1, round).await;
        let written = Instant::now();
        until(&users, |users| users.get(&key("acme", 1)).is_some_and(|user| user.age == round))
            .await;
        let late = written.elapsed();
        assert!(late < Duration::from_millis(100), "round {round}: {late:?}");
        sleep(Duration::from_secs(1)).await;
    }
    assert!(plan.calls("figures") >= 3, "{}", plan.calls("figures"));
    Ok(())
}

/// The map passes the position of the figures before they are answered. It is compared at that
/// position.
#[tokio::test(start_paused = true)]
async fn late_figures_are_compared_at_their_position() -> Outcome {
    for wrong in [0, 1] {
        let (_connection, store, plan) = planned().await;
        put(&store, 0, 1).await;
        plan.add(On::call("figures"), counted(wrong, Duration::from_secs(3)));
        let users = User::live_map(&store).await?;
        for id in 1..1_000 {
            put(&store, id, 1).await;
            sleep(Duration::from_millis(200)).await;
        }
        assert!(plan.calls("figures") >= 3, "{}", plan.calls("figures"));
        assert_eq!(plan.calls("watch") > 1, wrong > 0, "{wrong}: {}", plan.calls("watch"));
        until(&users, |users| users.len() == 1_000).await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn failed_comparisons_are_retried_after_growing_pauses() -> Outcome {
    let (_connection, store, plan) = planned().await;
    plan.add(On::call("figures"), Fault::fail(KvError::unavailable("figures", "no leader")));
    let _users = User::live_map(&store).await?;
    sleep(INTERVAL).await;
    let calls = plan.calls("figures");
    assert!((4..=8).contains(&calls), "{calls}");
    // After a success, the next failure is retried soon.
    plan.clear();
    sleep(2 * INTERVAL).await;
    let before = plan.calls("figures");
    plan.add(On::call("figures"), Fault::fail(KvError::unavailable("figures", "no leader")));
    sleep(INTERVAL + Duration::from_secs(10)).await;
    let calls = plan.calls("figures") - before;
    assert!(calls >= 3, "{calls}");
    Ok(())
}

/// After an outage, the leader has an older value of a key. The keys are the same.
#[tokio::test(start_paused = true)]
async fn older_copy_of_an_uncountable_scope_is_found() -> Outcome {
    for is_older in [false, true] {
        let (_connection, store, plan) = planned().await;
        let uncountable = KvError::unsupported("figures", "the scope cannot be counted");
        plan.add(On::call("figures"), Fault::fail(uncountable));
        let links = Arc::new(tokio::sync::watch::Sender::new(WatchLink::Up));
        let link = links.subscribe();
        let linked = Fault::new(move |call, next| {
            let link = link.clone();
            async move { Ok(Watch::try_from(next.call(call).await?)?.with_link(link).into()) }
        });
        plan.add(On::call("watch"), linked);
        put(&store, 1, 1).await;
        put(&store, 2, 2).await;
        let users = User::live_map(&store).await?;
        sleep(2 * INTERVAL).await;
        if is_older {
            let name = Key::new("user.acme.2")?;
            let older = KvEntry::put(
                name.clone(),
                "{}".into(),
                VersionToken::from_u64(0),
                SystemTime::UNIX_EPOCH,
            );
            let answer = move |_: &_| Ok(Answer::from(Some(older.clone())));
            plan.add(On::call("leader_entry").key(name.as_str()), Fault::answer(answer));
        }
        links.send_replace(WatchLink::down(SystemTime::now(), "away"));
        until(&users, |users| !users.status().link.is_up()).await;
        links.send_replace(WatchLink::Up);
        sleep(2 * INTERVAL).await;
        assert_eq!(plan.calls("watch") > 1, is_older, "{}", plan.calls("watch"));
        assert!(plan.calls("leader_entry") > 0, "the store is checked");
        until(&users, |users| users.len() == 2 && users.status().is_current()).await;
    }
    Ok(())
}
