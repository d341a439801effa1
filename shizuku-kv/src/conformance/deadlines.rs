//! Deadlines: no operation waits without a limit, and an operation that ran out of time reports its
//! outcome.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::fixture::writer_of;
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{Deadline, Key, KvError, KvResult, VersionToken, WatchScope, Write};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "deadlines";
    a_backend_that_answers_is_healthy []
        "health is one round trip to the backend.",
    the_deadline_of_a_handle_is_its_own []
        "Each handle has the deadline with which it was opened, 5 seconds by default.",
    reads_end_by_their_deadline [Write]
        "Every read ends by its deadline, with Timeout if no answer came in time.",
    writes_end_by_their_deadline [Write]
        "Every write ends by its deadline, with its result, Timeout or OutcomeUnknown.",
    a_write_that_timed_out_did_not_happen [Write]
        "Timeout of a write means that it did not take effect. If that is uncertain, it is \
         OutcomeUnknown.",
};

/// Maximum time by which an operation may end after its deadline, on a busy machine.
const LATE: Duration = Duration::from_secs(5);

/// Calls it once, and with other operations around it.
pub async fn a_backend_that_answers_is_healthy(fixture: &Fixture) -> CheckResult {
    fixture.connection().health().await?;
    let store = fixture.store().await?;
    store.get("key").await?;
    fixture.connection().health().await?;
    Ok(())
}

/// Uses a set deadline, the default one, and one that a handle changes.
pub async fn the_deadline_of_a_handle_is_its_own(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().deadline(Duration::from_secs(3))).await?;
    ensure_eq!(store.deadline(), Duration::from_secs(3), "the deadline that was set");
    let other = store.with_deadline(Duration::from_secs(9));
    ensure_eq!(
        (store.deadline(), other.deadline()),
        (Duration::from_secs(3), Duration::from_secs(9)),
        "both deadlines"
    );
    let name = store.name();
    let again = fixture.connection().store(name).await?;
    ensure_eq!(
        again.deadline(),
        Deadline::DEFAULT,
        "the deadline of a handle that was opened without one"
    );
    Ok(())
}

/// Runs an operation with almost no time, and checks that it ends with a valid error.
async fn ends<T>(
    fixture: &Fixture,
    operation: &str,
    answer: impl Future<Output = KvResult<T>>,
) -> CheckResult<KvResult<T>> {
    fixture.step(format!("{operation} with a deadline that has passed"));
    match timeout(LATE, answer).await {
        Ok(answer @ (Ok(_) | Err(KvError::Timeout { .. } | KvError::OutcomeUnknown { .. }))) => {
            Ok(answer)
        }
        Ok(Err(error)) => {
            let message = format!("{operation}: expected an answer or Timeout, found: {error}");
            Err(CheckFailure::new(message))
        }
        Err(_) => {
            Err(CheckFailure::new(format!("{operation} did not end {LATE:?} after its deadline")))
        }
    }
}

/// Runs reads without any time, with a nanosecond, and with a millisecond.
pub async fn reads_end_by_their_deadline(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for answer in store.put_many((0..200).map(|number| (format!("key.{number}"), "value"))).await {
        answer?;
    }
    for limit in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(1)] {
        let brief = store.with_deadline(limit);
        ends(fixture, "get", brief.get("key.1")).await?.ok();
        ends(fixture, "entry", brief.entry("key.1")).await?.ok();
        ends(fixture, "get_many", brief.get_many(["key.1", "key.2"])).await?.ok();
        ends(fixture, "history", brief.history("key.1")?.try_collect()).await?.ok();
        for (operation, answer) in [
            (
                "scan",
                ends(fixture, "scan", brief.scan(WatchScope::All).try_collect())
                    .await?
                    .map(|all| all.len()),
            ),
            (
                "keys",
                ends(fixture, "keys", brief.keys(WatchScope::All).try_collect())
                    .await?
                    .map(|all| all.len()),
            ),
        ] {
            if let Ok(found) = answer {
                ensure_eq!(found, 200, "items of {operation}, which ended as if it were complete");
            }
        }
        // The handle enforces deadlines of its own, so this calls the backend directly.
        let backend = store.backend();
        ends(fixture, "scan of the backend", backend.scan(WatchScope::All, limit).try_collect())
            .await?
            .ok();
        ends(fixture, "keys of the backend", backend.keys(WatchScope::All, limit).try_collect())
            .await?
            .ok();
        if store.capabilities().watch {
            ends(fixture, "watch", brief.watch(WatchScope::All)).await?.ok();
        }
    }
    ensure!(
        store.get("key.1").await?.is_some(),
        "a store whose reads timed out does not find a key"
    );
    Ok(())
}

/// Through the handle, and the backend itself, which has to hold its deadlines without the handle's
/// help.
pub async fn writes_end_by_their_deadline(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version = VersionToken::from_u64(1);
    let swaps = store.capabilities().compare_and_swap;
    for limit in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(1)] {
        let brief = store.with_deadline(limit);
        ends(fixture, "put", brief.put("key", "value")).await?.ok();
        ends(fixture, "delete", brief.delete("key")).await?.ok();
        ends(fixture, "purge", brief.purge("key")).await?.ok();
        let items = brief.put_many((0..50).map(|number| (format!("many.{number}"), "value")));
        for answer in
            ends(fixture, "put_many", async { Ok(items.await) }).await?.unwrap_or_default()
        {
            ends(fixture, "an item of put_many", async { answer }).await?.ok();
        }
        let (writer, key) = (writer_of(&store)?, Key::new("key")?);
        let deadline = || Deadline::after(limit);
        ends(fixture, "put of the backend", writer.write(&key, Write::put(""), deadline()))
            .await?
            .ok();
        ends(fixture, "delete of the backend", writer.write(&key, Write::delete(), deadline()))
            .await?
            .ok();
        if swaps {
            let conflict = |answer: KvResult<VersionToken>| match answer {
                Err(error) if error.is_conflict() => Ok(version),
                answer => answer,
            };
            ends(fixture, "create", async { conflict(brief.create("key", "value").await) })
                .await?
                .ok();
            let update = async { conflict(brief.update("key", "value", version).await) };
            ends(fixture, "update", update).await?.ok();
            let update = async {
                conflict(writer.write(&key, Write::update("", version), deadline()).await)
            };
            ends(fixture, "update of the backend", update).await?.ok();
        }
    }
    let version = store.put("key", "last").await?;
    let found = store.get("key").await?.map(|entry| entry.version);
    ensure_eq!(found, Some(version), "the version in a store whose writes timed out");
    Ok(())
}

/// Makes thirty writes with up to a few milliseconds each, and reads them after a later write was
/// acknowledged.
pub async fn a_write_that_timed_out_did_not_happen(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut answers = Vec::new();
    let started = Instant::now();
    for number in 0..30_u32 {
        let brief = store.with_deadline(Duration::from_micros(u64::from(number % 6) * 200));
        let key = format!("key.{number}");
        let answer = ends(fixture, "put", brief.put(&key, "value")).await?;
        answers.push((key, answer));
    }
    ensure!(
        started.elapsed() < LATE * 2,
        "30 writes of a millisecond took {:?}",
        started.elapsed()
    );
    store.put("last", "value").await?;
    for (key, answer) in answers {
        let found = store.entry(&key).await?.map(|entry| entry.version);
        match answer {
            Ok(version) => {
                ensure_eq!(found, Some(version), "the version of key {key}, which was acknowledged")
            }
            Err(KvError::Timeout { .. }) => {
                ensure!(found.is_none(), "a put that answered Timeout has written key {key}");
            }
            Err(_) => {}
        }
    }
    Ok(())
}
