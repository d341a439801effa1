//! Code of a type that panics: it costs no good value, and ends at most its own map.

use shizuku_kv::{KeyValue, KvReadError, LiveMapSyncState, LiveRead, LiveSyncState};
use shizuku_kv_tests::eventually;

use super::until;
use crate::{Outcome, stores};

/// A panic in a type's own code is treated like a value that does not decode.
#[tokio::test]
async fn panicking_type_costs_no_good_value() -> Outcome {
    #[derive(Debug, KeyValue)]
    struct Fragile(#[kv(key)] String, #[kv(value)] Length);

    #[derive(Debug)]
    struct Length(usize);

    impl shizuku_kv::ByteDeserialize for Length {
        fn from_bytes(bytes: &shizuku_kv::Bytes) -> Result<Self, shizuku_kv::DecodeError> {
            assert_ne!(bytes.len(), 13);
            Ok(Self(bytes.len()))
        }
    }

    for (_connection, store) in stores().await {
        store.put("fragile.1", "a").await?;
        store.put("fragile.2", "thirteen long").await?;
        let mut live = Fragile::live_at(&store, "fragile.1").await?;
        let map = Fragile::live_map(&store).await?;
        assert_eq!((map.len(), map.status().rejected), (1, 1));
        // Keys that are strings can be looked up by a borrowed form.
        assert!(map.contains_key("fragile.1"));
        store.put("fragile.1", "thirteen long").await?;
        store.put("fragile.2", "ab").await?;
        until(&live, |live| matches!(live.status().sync_state, LiveSyncState::Rejected { .. }))
            .await;
        let LiveSyncState::Rejected { error, .. } = live.status().sync_state else {
            panic!("it was rejected")
        };
        assert!(matches!(&*error, KvReadError::Panicked { during: "decoded", .. }), "{error:?}");
        let text = "the code of Fragile panicked while the record under key";
        assert!(error.to_string().starts_with(text), "{error}");
        eventually("the map follows", async || {
            map.snapshot().values().map(|fragile| fragile.1.0).eq([1, 2])
                && map.rejections().iter().map(|bad| bad.key.as_str()).eq(["fragile.1"])
        })
        .await;
        assert_eq!(live.load().1.0, 1);
        store.put("fragile.1", "ab").await?;
        assert_eq!(live.changed().await?.1.0, 2);
    }
    Ok(())
}

/// A panic in the value's `Drop` is logged, and the value that replaces it becomes current.
#[tokio::test]
async fn panicking_drop_is_reported_and_updates_continue() -> Outcome {
    #[derive(Debug, KeyValue)]
    #[kv(validate = Fragile::check)]
    struct Fragile {
        #[kv(key)]
        id: u64,
        #[kv(value)]
        length: Length,
    }

    impl Fragile {
        fn check(&self) -> Result<(), &'static str> {
            if self.length.0 == 5 { Err("five") } else { Ok(()) }
        }
    }

    #[derive(Debug, PartialEq)]
    struct Length(usize);

    impl Drop for Length {
        fn drop(&mut self) {
            assert!(self.0.is_multiple_of(2), "on purpose");
        }
    }

    impl shizuku_kv::ByteDeserialize for Length {
        fn from_bytes(bytes: &shizuku_kv::Bytes) -> Result<Self, shizuku_kv::DecodeError> {
            Ok(Self(bytes.len()))
        }
    }

    for (_connection, store) in stores().await {
        for key in 1..9 {
            store.put(key.to_string(), "a").await?;
        }
        let mut live = Fragile::live_at(&store, 1_u64).await?;
        let map = Fragile::live_map(&store).await?;
        for value in ["aba", "ab"] {
            for key in 1..9 {
                store.put(key.to_string(), value).await?;
            }
        }
        until(&live, |live| live.load().length.0 == 2).await;
        assert!(live.status().is_current(), "{:?}", live.status());
        eventually("the map follows", async || {
            map.snapshot().values().all(|value| value.length.0 == 2)
        })
        .await;
        assert!(map.status().is_current(), "{:?}", map.status());
        // A rejected value is dropped too.
        store.put("1", "fives").await?;
        until(&live, |live| matches!(live.status().sync_state, LiveSyncState::Rejected { .. }))
            .await;
        eventually("the map rejects it", async || map.rejections().len() == 1).await;
        // All remaining values are dropped, and every second one panics.
        for key in 1..9 {
            store.put(key.to_string(), "a").await?;
        }
        until(&live, |live| live.load().length.0 == 1).await;
        store.delete("1").await?;
        eventually("the map follows", async || map.len() == 7).await;
        assert!(live.changed().await.is_ok());
        assert!(map.status().is_current(), "{:?}", map.status());
    }
    Ok(())
}

/// A panic in the comparison of keys ends the map with the error `Panicked`.
#[tokio::test]
async fn panicking_comparison_ends_the_map_with_its_reason() -> Outcome {
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Id(u64);

    impl PartialOrd for Id {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Id {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            assert!(self.0 != 13 && other.0 != 13, "on purpose");
            self.0.cmp(&other.0)
        }
    }

    impl std::fmt::Display for Id {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }

    impl std::str::FromStr for Id {
        type Err = std::num::ParseIntError;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            text.parse().map(Self)
        }
    }

    #[derive(Debug, KeyValue)]
    struct Unlucky {
        #[kv(key)]
        id: Id,
        #[kv(value)]
        text: String,
    }

    let (_connection, store) = stores().await.swap_remove(0);
    Unlucky { id: Id(7), text: "a".to_owned() }.write_to_anyway(&store).await?;
    let mut map = Unlucky::live_map(&store).await?;
    store.put("13", "b").await?;
    let error = loop {
        if let Err(error) = map.changed().await {
            break error;
        }
    };
    let expected =
        "live_map has ended: the code of Unlucky panicked; the panic's own message says where";
    assert_eq!(error.to_string(), expected);
    assert!(matches!(
        &map.status().sync_state,
        LiveMapSyncState::Ended { error, .. } if error.to_string() == expected
    ));
    assert_eq!(map.len(), 1);
    Ok(())
}
