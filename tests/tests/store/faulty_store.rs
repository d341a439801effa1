//! The test double itself: each fault of a plan has the effect that it names, and no other.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use shizuku_kv::{
    Connection, KvError, KvUpdate, MemoryConnection, Store, VersionToken, Watch, WatchScope,
};
use shizuku_kv_tests::faulty::{
    Answer, Fault, FaultyConnection, FaultyStore, Gate, On, Operation, Plan, ReadOnly, Update,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Returns a store, and a handle through a plan.
async fn planned() -> (Store, Arc<Plan>, Store) {
    let store = MemoryConnection::new().store("orders").await.unwrap();
    let plan = Arc::new(Plan::default());
    let faulty = FaultyStore::over(&store, &plan);
    (store, plan, faulty)
}

async fn value(store: &Store) -> Option<String> {
    let entry = store.get("a").await.unwrap()?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

fn away() -> KvError {
    KvError::unavailable("put", "no leader")
}

#[tokio::test(start_paused = true)]
async fn rule_applies_to_the_chosen_calls_only() {
    let (store, plan, faulty) = planned().await;
    plan.add(On::call("put").key("a").after(1).times(1), Fault::fail(away()));
    faulty.put("a", "1").await.unwrap();
    faulty.put("b", "1").await.unwrap();
    assert!(!plan.is_over());
    faulty.create("c", "1").await.unwrap();
    assert!(matches!(faulty.put("a", "2").await, Err(KvError::Unavailable { .. })));
    assert!(plan.is_over());
    assert_eq!(value(&store).await.as_deref(), Some("1"));
    faulty.put("a", "3").await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("3"));
    assert_eq!((plan.calls("put"), plan.calls("create"), plan.all_calls()), (4, 1, 5));
}

#[tokio::test(start_paused = true)]
async fn delayed_calls_and_answers_keep_their_deadline() {
    let (store, plan, faulty) = planned().await;
    plan.add(On::call("put").times(1), Fault::delay(SECOND));
    let begun = Instant::now();
    faulty.put("a", "1").await.unwrap();
    assert_eq!(begun.elapsed(), SECOND);

    let hasty = faulty.with_deadline(SECOND);
    plan.add(On::call("put").times(1), Fault::delay(2 * SECOND));
    assert!(hasty.put("a", "2").await.is_err());
    assert_eq!(value(&store).await.as_deref(), Some("1"));

    plan.add(On::call("put").times(1), Fault::delay_answer(2 * SECOND));
    let late = hasty.put("a", "3").await;
    assert!(matches!(late, Err(KvError::OutcomeUnknown { .. })), "{late:?}");
    assert_eq!(value(&store).await.as_deref(), Some("3"));
}

#[tokio::test(start_paused = true)]
async fn lost_requests_and_answers_have_an_unknown_outcome() {
    let (store, plan, faulty) = planned().await;
    plan.add(On::call("put").times(1), Fault::lose_request(SECOND));
    plan.add(On::call("put").times(1), Fault::lose_answer(SECOND));
    for (wanted, stored) in [("1", None), ("2", Some("2"))] {
        let lost = faulty.put("a", wanted).await;
        assert!(matches!(lost, Err(KvError::OutcomeUnknown { operation: "put", .. })), "{lost:?}");
        assert_eq!(value(&store).await.as_deref(), stored);
    }
    plan.add(On::call("entry").times(1), Fault::lose_answer(SECOND));
    assert!(matches!(faulty.entry("a").await, Err(KvError::Timeout { .. })));
    plan.add(On::call("write_many").times(1), Fault::lose_request(SECOND));
    for answer in faulty.put_many([("a", "4"), ("b", "4")]).await {
        assert!(matches!(answer, Err(KvError::OutcomeUnknown { .. })), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn held_call_continues_when_the_gate_opens() {
    let (store, plan, faulty) = planned().await;
    let gate = Gate::default();
    plan.add(On::call("put"), Fault::hold(&gate));
    let put = tokio::spawn(async move { faulty.put("a", "1").await });
    tokio::time::sleep(SECOND).await;
    assert_eq!((plan.calls("put"), value(&store).await), (1, None));
    gate.open();
    put.await.unwrap().unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn rewritten_call_and_changed_answer_replace_the_original() {
    let (store, plan, faulty) = planned().await;
    plan.add(
        On::call("put").times(1),
        Fault::rewrite(|mut call| {
            if let Operation::Write(_, write) = &mut call.operation {
                *write = shizuku_kv::Write::put("other");
            }
            call
        }),
    );
    faulty.put("a", "1").await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("other"));

    let version = VersionToken::from_u64(77);
    plan.add(On::call("put").times(1), Fault::answer(move |_| Ok(version.into())));
    assert_eq!(faulty.put("a", "2").await.unwrap(), version);
    assert_eq!(value(&store).await.as_deref(), Some("other"));

    let without = |answer: Answer| answer.map_entries(|entry| (entry.key != "a").then_some(entry));
    plan.add(On::matching(|_| true), Fault::change(without));
    faulty.put("b", "1").await.unwrap();
    assert_eq!(value(&faulty).await, None);
    assert_eq!(faulty.scan(WatchScope::All).try_collect().await.unwrap().len(), 1);
    assert_eq!(faulty.history("a").unwrap().try_collect().await.unwrap().len(), 0);
    assert!(faulty.get_many(["a", "b"]).await.unwrap()[0].is_none());
}

/// Returns the values of a watch until its marker, an error or its end.
async fn delivered(watch: &Watch) -> Vec<String> {
    let mut values = Vec::new();
    while let Some(update) = watch.next().await {
        match update {
            Ok(KvUpdate::CaughtUp) => break,
            Ok(update) => {
                values.push(String::from_utf8(update.entry().unwrap().value.to_vec()).unwrap());
            }
            Err(_) => {
                values.push("error".to_owned());
                break;
            }
        }
    }
    values
}

#[tokio::test]
async fn watch_drops_repeats_reorders_and_ends_as_planned() {
    type Change = fn(Vec<Update>) -> Vec<Update>;
    let (store, plan, faulty) = planned().await;
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        store.put(key, value).await.unwrap();
    }
    let changes: [(Change, &[&str]); 5] = [
        (|updates| updates, &["1", "2", "3"]),
        (|updates| updates.into_iter().skip(1).collect(), &["2", "3"]),
        (
            |updates| updates.iter().flat_map(|update| vec![update.clone(); 2]).collect(),
            &["1", "1", "2", "2", "3", "3"],
        ),
        (|updates| updates[..3].iter().rev().cloned().collect(), &["3", "2", "1"]),
        (|updates| vec![updates[0].clone(), Err(KvError::closed("watch"))], &["1", "error"]),
    ];
    for (change, expected) in changes {
        let fault = Fault::change(move |answer| {
            answer.map_updates(|updates| {
                let four = updates.take(4).collect::<Vec<_>>();
                let changed = stream::once(four).flat_map(move |four| stream::iter(change(four)));
                changed.boxed()
            })
        });
        plan.add(On::call("watch").times(1), fault);
        let found = delivered(&faulty.watch(WatchScope::All).await.unwrap()).await;
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn plan_of_a_connection_applies_to_its_stores() {
    let plan = Arc::new(Plan::default());
    let connection = FaultyConnection::over(Arc::new(MemoryConnection::new()), &plan);
    plan.add(On::call("health"), Fault::fail(away()));
    assert!(connection.health().await.is_err());
    let store = connection.store("orders").await.unwrap();
    assert_eq!(connection.list_stores().try_collect().await.unwrap(), ["orders"]);
    plan.add(On::call("put"), Fault::fail(away()));
    assert!(store.put("a", "1").await.is_err());
    connection.delete_store("orders").await.unwrap();
    connection.shutdown().await.unwrap();
    let names = ["store_with_config", "list_stores", "delete_store", "health", "shutdown", "put"];
    for name in names {
        assert_eq!(plan.calls(name), 1, "{name}");
    }
}

#[tokio::test]
async fn answer_to_another_method_is_an_error() {
    let (_, plan, faulty) = planned().await;
    plan.add(On::call("put"), Fault::answer(|_| Ok(Answer::Done(()))));
    let error = faulty.put("a", "1").await.unwrap_err();
    assert!(error.to_string().contains("another method"), "{error}");
}

#[tokio::test]
async fn read_only_store_reads_and_rejects_writes() {
    let (store, ..) = planned().await;
    store.put("a", "1").await.unwrap();
    let faulty = FaultyStore::over(&store, &Arc::new(ReadOnly));
    assert_eq!(value(&faulty).await.as_deref(), Some("1"));
    assert!(matches!(faulty.put("a", "2").await, Err(KvError::Unsupported { .. })));
    assert!(matches!(faulty.watch(WatchScope::All).await, Err(KvError::Unsupported { .. })));
    assert!(faulty.ttl().is_none() && faulty.fenced().is_none());
}
