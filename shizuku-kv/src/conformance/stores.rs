//! Stores: created, opened, listed and deleted.

use super::{Check, CheckResult, Fixture};
use crate::store::{KvError, VersionToken, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "stores";
    a_store_is_made_once [Write]
        "Opening a store returns the existing one of that name, or creates it.",
    stores_are_apart [Write]
        "Stores have nothing in common but their connection.",
    a_store_that_must_exist_is_not_made []
        "A missing store that must exist is StoreNotFound, and is not created.",
    invalid_names_are_rejected []
        "A name that is not 1 to 64 characters of A-Z a-z 0-9 _ and - is InvalidStoreName.",
    a_store_claims_no_more_than_its_connection []
        "A store claims at most the capabilities of its connection.",
    stores_are_listed []
        "Every store is in the list once, until it is deleted.",
    a_deleted_store_is_gone [Write]
        "Handles of a deleted store return StoreNotFound.",
    watching_and_swapping_in_a_deleted_store_fails [Write, CompareAndSwap, Watch]
        "Handles of a deleted store return StoreNotFound.",
    deleting_a_missing_store_is_rejected []
        "Deleting a store that does not exist is StoreNotFound.",
    a_store_made_again_is_empty [Write]
        "A store that was deleted and recreated has none of its earlier content.",
};

/// Opens it twice through `store_with_config`, and through `store`.
pub async fn a_store_is_made_once(fixture: &Fixture) -> CheckResult {
    let (name, connection) = (fixture.fresh_name(), fixture.connection());
    let first = connection.store_with_config(&name, fixture.config()).await?;
    ensure_eq!(first.name(), name, "the name of the store");
    let version = first.put("key", "value").await?;
    for again in [
        connection.store_with_config(&name, fixture.config()).await?,
        connection.store(&name).await?,
    ] {
        let found = again.get("key").await?.map(|entry| entry.version);
        ensure_eq!(found, Some(version), "the version in a store that was opened again");
        let written = again.put("other", "value").await?;
        let found = first.get("other").await?.map(|entry| entry.version);
        ensure_eq!(found, Some(written), "the version that the first handle finds");
    }
    Ok(())
}

/// Uses the same key, and names of which one is a prefix of the other or differs by case.
pub async fn stores_are_apart(fixture: &Fixture) -> CheckResult {
    let name = fixture.fresh_name();
    let longer = format!("{name}-x");
    let (upper, lower) = (format!("{name}-A"), format!("{name}-a"));
    let mut stores = Vec::new();
    for name in [name, longer, upper, lower] {
        fixture.delete_afterwards(&name);
        let store = fixture.connection().store_with_config(&name, fixture.config()).await?;
        store.put("key", name.clone()).await?;
        store.put(format!("of.{name}"), "value").await?;
        stores.push(store);
    }
    for store in &stores {
        let value = store.get("key").await?.map(|entry| entry.value);
        ensure_eq!(
            value.as_deref(),
            Some(store.name().as_bytes()),
            "the value in store {}",
            store.name()
        );
        let mut keys = store.keys(WatchScope::All).try_collect().await?;
        keys.sort_unstable();
        let own = format!("of.{}", store.name());
        ensure_eq!(keys, ["key", own.as_str()], "the keys of a store");
    }
    Ok(())
}

/// Also opens an existing one.
pub async fn a_store_that_must_exist_is_not_made(fixture: &Fixture) -> CheckResult {
    let (name, connection) = (fixture.fresh_name(), fixture.connection());
    for _ in 0..2 {
        let opened = connection.store_with_config(&name, fixture.config().must_exist()).await;
        ensure_error!(
            opened,
            KvError::StoreNotFound { .. },
            "opening a store that must exist and does not"
        );
    }
    let listed = connection.list_stores().try_collect().await?;
    ensure!(!listed.contains(&name), "a store that had to exist was made");
    connection.store_with_config(&name, fixture.config()).await?;
    connection.store_with_config(&name, fixture.config().must_exist()).await?;
    Ok(())
}

/// Opens, opens with `must_exist`, and deletes. The longest name works.
pub async fn invalid_names_are_rejected(fixture: &Fixture) -> CheckResult {
    let connection = fixture.connection();
    let long = "n".repeat(65);
    let invalid = [
        "", " ", "a b", "a.b", ".", "..", "a*", "*", ">", "a/b", "a\\b", "ä", "a\n", "a\0", "$KV",
        &long,
    ];
    for name in invalid {
        let opened = connection.store(name).await;
        ensure_error!(opened, KvError::InvalidStoreName { .. }, "opening a store named {name:?}");
        let opened = connection.store_with_config(name, fixture.config().must_exist()).await;
        ensure_error!(opened, KvError::InvalidStoreName { .. }, "opening a store named {name:?}");
        let deleted = connection.delete_store(name).await;
        ensure_error!(deleted, KvError::InvalidStoreName { .. }, "deleting a store named {name:?}");
    }
    let mut longest = format!("{}_Az09", fixture.fresh_name());
    longest.push_str(&"-".repeat(64_usize.saturating_sub(longest.len())));
    fixture.delete_afterwards(&longest);
    let store = connection.store_with_config(&longest, fixture.config()).await?;
    ensure_eq!(store.name(), longest, "the name of a store with 64 characters");
    Ok(())
}

/// Uses a store with the defaults, and checks that its claimed abilities exist.
pub async fn a_store_claims_no_more_than_its_connection(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (has, can) = (store.capabilities(), fixture.capabilities());
    let pairs = [
        ("write", has.write, can.write),
        ("compare_and_swap", has.compare_and_swap, can.compare_and_swap),
        ("watch", has.watch, can.watch),
        ("watch_resume", has.watch_resume, can.watch_resume),
        ("ordered_versions", has.ordered_versions, can.ordered_versions),
        ("max_age", has.max_age, can.max_age),
        ("key_ttl", has.key_ttl, can.key_ttl),
        ("fenced_writes", has.fenced_writes, can.fenced_writes),
        ("expiry_events", has.expiry_events, can.expiry_events),
        ("leader_reads", has.leader_reads, can.leader_reads),
        ("linearizable_reads", has.linearizable_reads, can.linearizable_reads),
        ("persistent", has.persistent, can.persistent),
        ("shared", has.shared, can.shared),
    ];
    for (capability, has, can) in pairs {
        ensure!(can || !has, "the store claims {capability}, which its connection does not");
    }
    ensure!(
        has.max_history <= can.max_history,
        "the store claims more history than its connection"
    );
    ensure!(
        can.max_history >= 1,
        "the newest version of a key is a history of 1, and 0 is claimed"
    );
    ensure_eq!(
        store.backend().writer().is_some(),
        has.write,
        "whether there is a writer, as claimed"
    );
    ensure_eq!(
        store.backend().watcher().is_some(),
        has.watch,
        "whether there is a watcher, as claimed"
    );
    ensure_eq!(store.ttl().is_some(), has.key_ttl, "whether there are times to live, as claimed");
    ensure_eq!(
        store.fenced().is_some(),
        has.fenced_writes,
        "whether there are fenced writes, as claimed"
    );
    Ok(())
}

/// Uses three stores, of which one is deleted.
pub async fn stores_are_listed(fixture: &Fixture) -> CheckResult {
    let connection = fixture.connection();
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(fixture.store().await?.name().to_owned());
    }
    let listed = connection.list_stores().try_collect().await?;
    for name in &names {
        ensure_eq!(
            listed.iter().filter(|listed| *listed == name).count(),
            1,
            "how often a store is listed"
        );
    }
    if let Some(deleted) = names.pop() {
        connection.delete_store(&deleted).await?;
        let listed = connection.list_stores().try_collect().await?;
        ensure!(!listed.contains(&deleted), "a store that was deleted is listed");
        ensure!(
            names.iter().all(|name| listed.contains(name)),
            "deleting a store took others from the list"
        );
    }
    Ok(())
}

/// Calls every read and every unconditional write.
pub async fn a_deleted_store_is_gone(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("key", "value").await?;
    fixture.connection().delete_store(store.name()).await?;
    ensure_error!(store.get("key").await, KvError::StoreNotFound { .. }, "get");
    ensure_error!(store.entry("key").await, KvError::StoreNotFound { .. }, "entry");
    ensure_error!(
        store.get_many(["key", "other"]).await,
        KvError::StoreNotFound { .. },
        "get_many"
    );
    ensure_error!(
        store.history("key")?.try_collect().await,
        KvError::StoreNotFound { .. },
        "history"
    );
    ensure_error!(
        store.scan(WatchScope::All).try_collect().await,
        KvError::StoreNotFound { .. },
        "scan"
    );
    ensure_error!(
        store.keys(WatchScope::All).try_collect().await,
        KvError::StoreNotFound { .. },
        "keys"
    );
    ensure_error!(store.put("key", "value").await, KvError::StoreNotFound { .. }, "put");
    ensure_error!(store.delete("key").await, KvError::StoreNotFound { .. }, "delete");
    ensure_error!(store.purge("key").await, KvError::StoreNotFound { .. }, "purge");
    for answer in store.put_many([("key", "value"), ("other", "value")]).await {
        ensure_error!(answer, KvError::StoreNotFound { .. }, "put_many");
    }
    let opened =
        fixture.connection().store_with_config(store.name(), fixture.config().must_exist()).await;
    ensure_error!(
        opened,
        KvError::StoreNotFound { .. },
        "opening a store that must exist and was deleted"
    );
    Ok(())
}

/// Creates, updates, deletes by version and watches.
pub async fn watching_and_swapping_in_a_deleted_store_fails(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version: VersionToken = store.put("key", "value").await?;
    fixture.connection().delete_store(store.name()).await?;
    ensure_error!(store.create("new", "value").await, KvError::StoreNotFound { .. }, "create");
    ensure_error!(
        store.update("key", "value", version).await,
        KvError::StoreNotFound { .. },
        "update"
    );
    let deleted = store.delete_with_version("key", version).await;
    ensure_error!(deleted, KvError::StoreNotFound { .. }, "delete_with_version");
    let watch = match store.watch(WatchScope::prefix("key")).await {
        Ok(watch) => watch.next().await.transpose(),
        Err(error) => Err(error),
    };
    ensure_error!(watch, KvError::StoreNotFound { .. }, "watch");
    Ok(())
}

/// Deletes a store that never existed, and one that was deleted before.
pub async fn deleting_a_missing_store_is_rejected(fixture: &Fixture) -> CheckResult {
    let (name, connection) = (fixture.fresh_name(), fixture.connection());
    let missing = connection.delete_store(&name).await;
    ensure_error!(missing, KvError::StoreNotFound { .. }, "deleting a store that was never made");
    connection.store_with_config(&name, fixture.config()).await?;
    connection.delete_store(&name).await?;
    let again = connection.delete_store(&name).await;
    ensure_error!(again, KvError::StoreNotFound { .. }, "deleting a store a second time");
    Ok(())
}

/// The recreated store may have other settings.
pub async fn a_store_made_again_is_empty(fixture: &Fixture) -> CheckResult {
    let connection = fixture.connection();
    let store = fixture.store_with(fixture.config().max_value_size(1000)).await?;
    for key in ["a", "b.c"] {
        store.put(key, "value").await?;
    }
    store.delete("a").await?;
    connection.delete_store(store.name()).await?;
    let again =
        connection.store_with_config(store.name(), fixture.config().max_value_size(2000)).await?;
    ensure_eq!(
        again.scan(WatchScope::All).try_collect().await?,
        [],
        "a scan of a store that was made again"
    );
    for key in ["a", "b.c"] {
        ensure!(
            again.entry(key).await?.is_none(),
            "a store that was made again has an entry of before"
        );
    }
    ensure_eq!(again.max_value_size(), 2000, "the limit of a store that was made again");
    again.put("a", "value").await?;
    Ok(())
}
