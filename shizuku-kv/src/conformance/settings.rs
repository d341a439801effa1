//! Settings: creating a store with settings, and opening it with others.

use std::time::Duration;

use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{
    ConfigDifference, Deadline, KvError, KvResult, ReadConsistency, Store, StoreConfig, WatchScope,
};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "settings";
    impossible_settings_are_rejected []
        "A setting that cannot work is InvalidConfig with its name, and no store is created.",
    the_claimed_history_is_the_most [History]
        "A store can keep the claimed number of versions, and more are Unsupported.",
    a_different_configuration_is_rejected [Write]
        "A requested setting that differs from the store's is ConfigMismatch, with the requested \
         and the actual value.",
    settings_left_alone_are_not_compared [Write]
        "Unset settings, and those of the handle, are not compared.",
    reconciling_changes_the_store [Write]
        "Reconciling changes a store to the settings or is ConfigMismatch. Its values stay.",
    limits_can_be_removed [Write]
        "Reconciling with no limit removes a store's limit. No limit is a setting like any other.",
    a_history_is_not_given_to_times_to_live [Write, KeyTtl, History]
        "A history above 1 together with times to live is InvalidConfig, even if the store has \
         one of them already.",
    open_handles_learn_of_new_limits [Write]
        "A handle that was opened earlier accepts values by the store's present limit.",
    a_full_store_says_so [Write]
        "A write over max_bytes is StoreFull and writes nothing. Reads continue.",
};

/// Uses each impossible setting on its own, and a deadline of zero.
pub async fn impossible_settings_are_rejected(fixture: &Fixture) -> CheckResult {
    let base = || fixture.config();
    let impossible = [
        ("history", base().history(0)),
        ("history", base().history(65)),
        ("history", base().history(255)),
        ("max_value_size", base().max_value_size(0)),
        ("max_bytes", base().max_bytes(0)),
        ("max_age", base().max_age(Duration::ZERO)),
        ("max_age", base().max_age(Duration::from_millis(99))),
        ("max_age", base().max_age(Duration::MAX)),
        ("replicas", base().replicas(0)),
        ("replicas", base().replicas(6)),
        ("key_ttl", base().key_ttl(true).history(2)),
        ("deadline", base().deadline(Duration::ZERO)),
    ];
    for (field, config) in impossible {
        let name = fixture.fresh_name();
        match fixture.connection().store_with_config(&name, config).await {
            Err(KvError::InvalidConfig { field: found, .. }) => {
                ensure_eq!(found, field, "the setting that InvalidConfig names");
            }
            Err(error) => {
                let message =
                    format!("an impossible {field}: expected InvalidConfig, found: {error}");
                return Err(CheckFailure::new(message));
            }
            Ok(_) => {
                return Err(CheckFailure::new(format!(
                    "a store with an impossible {field} was opened"
                )));
            }
        }
        let opened = fixture.connection().store_with_config(&name, base().must_exist()).await;
        ensure_error!(opened, KvError::StoreNotFound { .. }, "a store with an impossible {field}");
    }
    Ok(())
}

/// Opens a store with the maximum, and with one more.
pub async fn the_claimed_history_is_the_most(fixture: &Fixture) -> CheckResult {
    let most = fixture.capabilities().max_history;
    ensure!(
        most <= 64,
        "a history of {most} is claimed, and no store can be asked for more than 64"
    );
    fixture.store_with(fixture.config().history(most)).await?;
    if most < 64 {
        let name = fixture.fresh_name();
        let opened =
            fixture.connection().store_with_config(&name, fixture.config().history(most + 1)).await;
        ensure_error!(opened, KvError::Unsupported { .. }, "a history of one more than claimed");
    }
    Ok(())
}

fn ensure_differences(
    opened: KvResult<Store>,
    name: &str,
    expected: &[(&str, &str, &str)],
) -> CheckResult {
    let differences = match opened {
        Err(KvError::ConfigMismatch { store, differences }) => {
            ensure_eq!(store, name, "the store in ConfigMismatch");
            differences
        }
        Err(error) => {
            return Err(CheckFailure::new(format!("expected ConfigMismatch, found: {error}")));
        }
        Ok(_) => {
            return Err(CheckFailure::new(
                "a store was opened that is different from what was asked for",
            ));
        }
    };
    let mut found = differences.iter().map(|difference| difference.field).collect::<Vec<_>>();
    found.sort_unstable();
    let mut fields = expected.iter().map(|(field, ..)| *field).collect::<Vec<_>>();
    fields.sort_unstable();
    ensure_eq!(found, fields, "the settings in ConfigMismatch");
    for ConfigDifference { field, wanted, found } in &differences {
        for (_, expect_wanted, expect_found) in
            expected.iter().filter(|(expected, ..)| expected == field)
        {
            ensure!(
                wanted.contains(expect_wanted),
                "{field}: wanted {expect_wanted}, the error says {wanted}"
            );
            ensure!(
                found.contains(expect_found),
                "{field}: found {expect_found}, the error says {found}"
            );
        }
    }
    Ok(())
}

/// Changes one setting, two, and one among others that agree.
pub async fn a_different_configuration_is_rejected(fixture: &Fixture) -> CheckResult {
    let (name, connection) = (fixture.fresh_name(), fixture.connection());
    let base = || StoreConfig { description: None, max_value_size: None, ..fixture.config() };
    let store = connection
        .store_with_config(&name, base().description("blue").max_value_size(1111))
        .await?;
    let version = store.put("key", "value").await?;
    let opened = connection.store_with_config(&name, base().description("green")).await;
    ensure_differences(opened, &name, &[("description", "green", "blue")])?;
    let opened =
        connection.store_with_config(&name, base().description("blue").max_value_size(2222)).await;
    ensure_differences(opened, &name, &[("max_value_size", "2222", "1111")])?;
    let opened =
        connection.store_with_config(&name, base().description("red").max_value_size(2222)).await;
    ensure_differences(
        opened,
        &name,
        &[("description", "red", "blue"), ("max_value_size", "2222", "1111")],
    )?;
    if fixture.capabilities().max_history > 1 {
        let opened = connection.store_with_config(&name, base().history(2)).await;
        ensure_differences(opened, &name, &[("history", "2", "1")])?;
    }
    ensure_eq!(store.max_value_size(), 1111, "the limit after rejected openings");
    ensure_eq!(
        store.get("key").await?.map(|entry| entry.version),
        Some(version),
        "the value after rejected openings"
    );
    Ok(())
}

/// Sets nothing, sets one setting to its present value, and another deadline and consistency.
pub async fn settings_left_alone_are_not_compared(fixture: &Fixture) -> CheckResult {
    let (name, connection) = (fixture.fresh_name(), fixture.connection());
    let base = || StoreConfig { description: None, max_value_size: None, ..fixture.config() };
    let made = base().description("text").max_value_size(1234);
    connection.store_with_config(&name, made.clone()).await?.put("key", "value").await?;
    let deadline = Duration::from_secs(7);
    let same = [
        StoreConfig::new(),
        base(),
        base().must_exist(),
        base().description("text"),
        base().max_value_size(1234),
        made.clone(),
        made.reconcile(),
        base().deadline(deadline),
    ];
    for config in same {
        let set = config.deadline;
        let store = connection.store_with_config(&name, config).await?;
        ensure!(
            store.get("key").await?.is_some(),
            "a store that was opened again has lost its value"
        );
        ensure_eq!(store.max_value_size(), 1234, "the limit of a store that was opened again");
        let expected = set.unwrap_or(Deadline::DEFAULT);
        ensure_eq!(store.deadline(), expected, "the deadline of the handle");
    }
    if fixture.capabilities().leader_reads {
        let config = base().consistency(ReadConsistency::Leader);
        connection.store_with_config(&name, config).await?;
    }
    Ok(())
}

/// Changes the description and the limit, which a backend may be unable to change. The store then
/// has the reported settings.
pub async fn reconciling_changes_the_store(fixture: &Fixture) -> CheckResult {
    let (name, connection) = (fixture.fresh_name(), fixture.connection());
    let base = || StoreConfig { description: None, max_value_size: None, ..fixture.config() };
    let old = || base().description("old").max_value_size(1000);
    let new = || base().description("new").max_value_size(2000);
    let first = connection.store_with_config(&name, old()).await?;
    let version = first.put("key", "value").await?;
    match connection.store_with_config(&name, new().reconcile()).await {
        Ok(store) => {
            ensure_eq!(store.max_value_size(), 2000, "the limit after reconciling");
            store.put("large", vec![b'v'; 2000]).await?;
            let opened = connection.store_with_config(&name, old()).await;
            let expected = [("description", "old", "new"), ("max_value_size", "1000", "2000")];
            ensure_differences(opened, &name, &expected)?;
            connection.store_with_config(&name, new()).await?;
        }
        Err(KvError::ConfigMismatch { .. }) => {
            // Either all settings change or none.
            connection.store_with_config(&name, old()).await?;
        }
        Err(error) => return Err(error.into()),
    }
    ensure_eq!(
        first.get("key").await?.map(|entry| entry.version),
        Some(version),
        "the value after reconciling"
    );
    Ok(())
}

/// Removes each limit alone, then all at once.
pub async fn limits_can_be_removed(fixture: &Fixture) -> CheckResult {
    let connection = fixture.connection();
    let base = || StoreConfig { max_value_size: None, ..fixture.config() };
    let age = fixture.capabilities().max_age;
    let limited = || {
        let config = base().max_value_size(100).max_bytes(64 * 1024);
        if age { config.max_age(Duration::from_secs(3600)) } else { config }
    };
    let unlimited = || {
        let config = base().max_value_size(None).max_bytes(None);
        if age { config.max_age(None) } else { config }
    };
    let name = fixture.fresh_name();
    match connection.store_with_config(&name, limited()).await {
        Err(KvError::Unsupported { .. }) => return Ok(()),
        opened => drop(opened?),
    }
    let mut differences =
        vec![("max_value_size", "no limit", "100"), ("max_bytes", "no limit", "65536")];
    if age {
        differences.push(("max_age", "no limit", "3600"));
    }
    for difference in &differences {
        let config = match difference.0 {
            "max_value_size" => base().max_value_size(None),
            "max_bytes" => base().max_bytes(None),
            _ => base().max_age(None),
        };
        let opened = connection.store_with_config(&name, config).await;
        ensure_differences(opened, &name, std::slice::from_ref(difference))?;
    }
    ensure_differences(
        connection.store_with_config(&name, unlimited()).await,
        &name,
        &differences,
    )?;
    let store = connection.store_with_config(&name, unlimited().reconcile()).await?;
    for number in 0..20 {
        store.put(format!("key.{number}"), vec![b'v'; 4096]).await?;
    }
    if fixture.capabilities().fenced_writes {
        ensure!(store.fenced().is_some(), "a store without a maximum age has no fenced writes");
    }
    connection.store_with_config(&name, unlimited()).await?;
    let opened = connection.store_with_config(&name, base().max_bytes(64 * 1024)).await;
    ensure_differences(opened, &name, &[("max_bytes", "65536", "no limit")])
}

/// Requests them in both orders, and then without one of them.
pub async fn a_history_is_not_given_to_times_to_live(fixture: &Fixture) -> CheckResult {
    let connection = fixture.connection();
    let base = || StoreConfig { history: None, key_ttl: None, ..fixture.config() };
    let aged = || base().max_age(Duration::from_secs(3600));
    let mut first = vec![base().key_ttl(true)];
    if fixture.capabilities().max_age {
        first.push(aged().key_ttl(true));
    }
    for config in first {
        let name = fixture.fresh_name();
        connection.store_with_config(&name, config).await?;
        let longer = connection.store_with_config(&name, base().history(2).reconcile()).await;
        ensure_error!(
            longer,
            KvError::InvalidConfig { .. },
            "a history for a store with times to live"
        );
        let store = connection.store(&name).await?;
        ensure!(store.ttl().is_some(), "a rejected history has taken the times to live away");
        let store = connection
            .store_with_config(&name, base().history(2).key_ttl(false).reconcile())
            .await?;
        ensure!(store.ttl().is_none(), "a store has times to live that were given up");
    }
    let name = fixture.fresh_name();
    connection.store_with_config(&name, base().history(2)).await?;
    let both = connection.store_with_config(&name, base().key_ttl(true).reconcile()).await;
    ensure_error!(both, KvError::InvalidConfig { .. }, "times to live for a store with a history");
    if fixture.capabilities().max_age {
        // The markers of a maximum age are not times to live.
        let name = fixture.fresh_name();
        let store = connection.store_with_config(&name, aged()).await?;
        ensure!(
            store.ttl().is_none(),
            "a maximum age brings times to live that were not asked for"
        );
        connection.store_with_config(&name, base().history(2).reconcile()).await?;
    }
    Ok(())
}

/// Raises the limit, then lowers it below the size of the stored value.
pub async fn open_handles_learn_of_new_limits(fixture: &Fixture) -> CheckResult {
    let (name, connection) = (fixture.fresh_name(), fixture.connection());
    let base = || StoreConfig { max_value_size: None, ..fixture.config() };
    let before = connection.store_with_config(&name, base().max_value_size(1000)).await?;
    before.put("key", vec![b'v'; 1000]).await?;
    match connection.store_with_config(&name, base().max_value_size(2000).reconcile()).await {
        Err(KvError::ConfigMismatch { .. }) => return Ok(()),
        changed => drop(changed?),
    }
    before.put("key", vec![b'v'; 2000]).await?;
    let many = before.put_many([("one", vec![b'v'; 2000]), ("two", vec![b'v'; 2001])]).await;
    let [one, two] =
        many.try_into().map_err(|_| CheckFailure::new("put_many answers for two items"))?;
    one?;
    ensure_error!(
        two,
        KvError::ValueTooLarge { limit: 2000, .. },
        "a value over the limit that was raised"
    );
    connection.store_with_config(&name, base().max_value_size(500).reconcile()).await?;
    // A backend may notice only a value that exceeds its limit together with the backend's own
    // overhead.
    let large = before.put("key", vec![b'v'; 1000]).await;
    ensure_error!(
        large,
        KvError::ValueTooLarge { limit: 500, .. },
        "a value over the limit that was lowered"
    );
    ensure_eq!(before.max_value_size(), 500, "the limit that the handle knows of");
    let large = before.put("key", vec![b'v'; 501]).await;
    ensure_error!(
        large,
        KvError::ValueTooLarge { limit: 500, .. },
        "a value just over the limit that was lowered"
    );
    ensure_eq!(
        before.get("key").await?.map(|entry| entry.value.len()),
        Some(2000),
        "the value that was there"
    );
    before.refresh().await?;
    Ok(())
}

/// Fills sixty-four kilobytes with writes of four. The backend decides whether it counts anything
/// besides values.
pub async fn a_full_store_says_so(fixture: &Fixture) -> CheckResult {
    const LIMIT: u64 = 64 * 1024;
    const VALUE: usize = 4096;
    let name = fixture.fresh_name();
    let config = fixture.config().max_bytes(LIMIT);
    let store = match fixture.connection().store_with_config(&name, config).await {
        Err(KvError::Unsupported { .. }) => return Ok(()),
        opened => opened?,
    };
    let mut written = 0_usize;
    let rejected = loop {
        match store.put(format!("key.{written}"), vec![b'v'; VALUE]).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        let bytes = written * VALUE;
        ensure!(
            bytes <= 64 * 1024,
            "{bytes} bytes of values were written to a store limited to {LIMIT} bytes"
        );
    };
    ensure_error!(Err::<(), _>(rejected), KvError::StoreFull { .. }, "a write to a full store");
    ensure!(
        written * VALUE >= 32 * 1024,
        "the store is full with {written} values of {VALUE} bytes"
    );
    let found = store.keys(WatchScope::All).try_collect().await?.len();
    ensure_eq!(found, written, "keys in a full store");
    ensure!(
        store.entry(format!("key.{written}")).await?.is_none(),
        "a rejected write left something behind"
    );
    let full = store.put_many([(format!("key.{written}"), vec![b'v'; VALUE])]).await.pop();
    ensure_error!(full.transpose(), KvError::StoreFull { .. }, "put_many to a full store");
    if store.capabilities().compare_and_swap {
        let full = store.create(format!("key.{written}"), vec![b'v'; VALUE]).await;
        ensure_error!(full, KvError::StoreFull { .. }, "create in a full store");
    }
    Ok(())
}
