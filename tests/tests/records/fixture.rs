//! Records by hand, and stores for them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shizuku_kv::{
    ByteDeserialize, ByteSerialize, DecodeError, EncodeError, JsonByteDes, JsonByteSer, KeyValue,
    StaticKeyIndexedValue, Store, StoreConfig,
};

pub(crate) const SECRET: &str = "hunter2";

pub(crate) async fn store() -> Store {
    store_with(StoreConfig::new()).await
}

pub(crate) async fn store_with(config: StoreConfig) -> Store {
    shizuku_kv::connect("memory:").await.unwrap().store_with_config("typed", config).await.unwrap()
}

/// One value at one key, by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) password: String,
    pub(crate) connections: u32,
}

impl StaticKeyIndexedValue for Database {
    fn key() -> String {
        "config.database".to_owned()
    }
}

impl Database {
    pub(crate) fn example() -> Self {
        Self { url: "postgres://db".to_owned(), password: SECRET.to_owned(), connections: 5 }
    }
}

/// A record with its key in its fields, by hand, next to the blanket impl of the static ones.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
pub(crate) struct User {
    pub(crate) id: u64,
    pub(crate) name: String,
}

impl User {
    pub(crate) fn new(id: u64, name: &str) -> Self {
        Self { id, name: name.to_owned() }
    }
}

impl KeyValue for User {
    type Key = u64;
    type Value = Self;

    fn kv_key(&self) -> u64 {
        self.id
    }

    fn kv_value(&self) -> &Self {
        self
    }

    fn from_kv(_key: u64, value: Self) -> Self {
        value
    }
}

/// A key and a value, by hand. It is not `Clone`, and its key is not the store's key unchanged.
#[derive(Debug, PartialEq)]
pub(crate) struct Counter {
    pub(crate) name: String,
    pub(crate) count: Count,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Count(pub(crate) u64);

impl ByteSerialize for Count {
    fn to_bytes(&self) -> Result<Bytes, EncodeError> {
        if self.0 == u64::MAX {
            return Err(EncodeError::new("the count is at its end"));
        }
        Ok(Bytes::copy_from_slice(&self.0.to_be_bytes()))
    }
}

impl ByteDeserialize for Count {
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError> {
        let bytes = <[u8; 8]>::try_from(&bytes[..])
            .map_err(|_| DecodeError::new("a count has 8 bytes").at_offset(bytes.len().min(8)))?;
        Ok(Self(u64::from_be_bytes(bytes)))
    }
}

impl KeyValue for Counter {
    type Key = String;
    type Value = Count;

    fn kv_key(&self) -> String {
        self.name.clone()
    }

    fn kv_value(&self) -> &Count {
        &self.count
    }

    fn from_kv(key: String, value: Count) -> Self {
        Self { name: key, count: value }
    }
}

pub(crate) fn counter(name: &str, count: u64) -> Counter {
    Counter { name: name.to_owned(), count: Count(count) }
}

pub(crate) fn increment(name: &str, counter: Option<Counter>) -> Counter {
    let count = counter.map_or(0, |counter| counter.count.0);
    self::counter(name, count + 1)
}
