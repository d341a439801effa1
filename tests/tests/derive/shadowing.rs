//! Types that deref to a record hide none of its fields and methods.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    KeyValue, KeyValueRead, KeyValueWrite, LiveRead, LiveStatic, StaticKeyIndexedValue,
    VersionToken,
};

use super::{Outcome, store};

/// Has a field for every name that an entry, a snapshot or a reference could define itself, with
/// the same types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "hidden.{id}", codec = json)]
struct Hidden {
    id: u8,
    value: u32,
    #[serde(skip)]
    version: Option<VersionToken>,
    created: Option<SystemTime>,
    generation: u64,
}

/// The same as methods.
#[allow(
    clippy::wrong_self_convention,
    reason = "the names are those of functions that take an entry"
)]
impl Hidden {
    fn value(&self) -> u32 {
        self.value
    }

    fn value_mut(&mut self) -> &mut u32 {
        &mut self.value
    }

    fn version(&self) -> &'static str {
        "own method"
    }

    fn created(&self) -> Option<SystemTime> {
        self.created
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn map(&self) -> &'static str {
        "own method"
    }

    fn decode(&self) -> &'static str {
        "own method"
    }

    fn into_value(&self) -> &'static str {
        "own method"
    }

    fn into_entry(&self) -> &'static str {
        "own method"
    }
}

/// The elements of a tuple struct are fields, too.
#[derive(Debug, PartialEq, KeyValue)]
struct Pair(#[kv(key)] String, #[kv(value)] String);

fn record() -> Hidden {
    let created = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    Hidden { id: 1, value: 2, version: None, created, generation: 3 }
}

#[tokio::test]
async fn fields_of_a_read_record_are_changed_and_written() -> Outcome {
    let store = store().await;
    let first = record().create_write(&store).await?;
    let mut entry = Hidden::atomic_read_from(&store, 1).await?.ok_or("it is absent")?;
    let later = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2));
    entry.created = later;
    entry.value = 20;
    entry.generation = 30;
    entry.write_to_atomically(&store, first).await?;
    let stored = Hidden::read_from(&store, 1).await?.ok_or("it is absent")?;
    assert_eq!(stored, Hidden { created: later, value: 20, generation: 30, ..record() });
    Ok(())
}

#[tokio::test]
async fn methods_and_fields_of_an_entry_are_the_records() -> Outcome {
    let store = store().await;
    record().create_write(&store).await?;
    let mut entry = Hidden::atomic_read_from(&store, 1).await?.ok_or("it is absent")?;
    assert_eq!((entry.value, entry.version, entry.generation), (2, None, 3));
    assert_eq!((entry.value(), *entry.value_mut(), entry.version()), (2, 2, "own method"));
    assert_eq!((entry.created(), entry.generation()), (record().created, 3));
    assert_eq!(
        [entry.map(), entry.decode(), entry.into_value(), entry.into_entry()],
        ["own method"; 4]
    );

    Pair("a".to_owned(), "b".to_owned()).create_write(&store).await?;
    let pair = Pair::atomic_read_from(&store, "a").await?.ok_or("it is absent")?;
    assert_eq!((pair.0.as_str(), pair.1.as_str()), ("a", "b"));
    Ok(())
}

#[tokio::test]
async fn methods_and_fields_of_a_live_value_are_the_records() -> Outcome {
    let store = store().await;
    record().create_write(&store).await?;
    Pair("a".to_owned(), "b".to_owned()).create_write(&store).await?;
    let live = Hidden::live_at(&store, 1).await?;
    let pair = Pair::live_at(&store, "a").await?;
    assert_eq!((pair.load().0.as_str(), pair.snapshot().1.as_str()), ("a", "b"));

    let map = Hidden::live_map_scope(&store, HiddenKey::scope()).await?;
    let of_map = map.get(&HiddenKey { id: 1 }).ok_or("it is absent")?;
    for snapshot in [live.snapshot(), Arc::clone(&of_map)] {
        assert_eq!((snapshot.value, snapshot.version, snapshot.generation), (2, None, 3));
        assert_eq!((snapshot.value(), snapshot.version()), (2, "own method"));
        assert_eq!((snapshot.created(), snapshot.generation()), (record().created, 3));
        assert_eq!((snapshot.created, snapshot.map()), (record().created, "own method"));
        assert_eq!(
            [snapshot.into_value(), snapshot.into_entry(), snapshot.decode()],
            ["own method"; 3]
        );
    }
    let live = live.load();
    assert_eq!((live.value, live.version, live.generation), (2, None, 3));
    assert_eq!((live.value(), live.version(), live.map()), (2, "own method", "own method"));
    Ok(())
}

/// A record with one key is the receiver of its operations behind every one of these types.
#[tokio::test]
async fn operations_behind_an_entry_are_the_records() -> Outcome {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, StaticKeyIndexedValue)]
    #[kv(key = "hidden", codec = json)]
    struct One {
        created: u8,
    }

    let store = store().await;
    One { created: 1 }.create_write(&store).await?;
    let live = One::live(&store).await?;
    let mut entry = One::atomic_read(&store).await?.ok_or("it is absent")?;
    entry.created = 2;
    entry.write_to_anyway(&store).await?;
    assert_eq!(One::read(&store).await?, Some(One { created: 2 }));
    live.snapshot().write_to_anyway(&store).await?;
    assert_eq!(live.load().kv_key(), "hidden");
    Ok(())
}
