//! The snippets of the reference documentation, nearly as they stand there, with what they leave
//! out filled in; run on every backend.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]
#![allow(
    unused_imports,
    clippy::needless_borrow,
    clippy::needless_borrows_for_generic_args,
    reason = "the snippets are written as they are"
)]

use shizuku_kv::{Store, TypedUpdate};
use shizuku_kv_tests::{NatsServer, unique};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// "Basic Operations".
async fn basic_operations(store: &Store) -> Outcome {
    use shizuku_kv::KeyValue;

    #[derive(
        Debug,
        PartialEq,
        serde::Serialize,
        serde::Deserialize,
        shizuku_kv::JsonByteSer,
        shizuku_kv::JsonByteDes,
        shizuku_kv::KeyValue,
    )]
    struct MyDynamicValue {
        #[kv(key)]
        key: String,
        value: u32,
    }
    let key = "basic.key".to_string();
    let mut my_value = MyDynamicValue { key: key.clone(), value: 1 };

    // Read a value with dynamic key
    let value = MyDynamicValue::read_from(&store, key.clone()).await?;
    assert_eq!(value, None);
    // Write a value
    let revision = my_value.write_to_anyway(&store).await?;
    my_value.value = 2;
    // Atomic write with version check
    my_value.write_to_atomically(&store, revision).await?;
    assert!(my_value.write_to_atomically(&store, revision).await.unwrap_err().is_conflict());
    assert_eq!(MyDynamicValue::read_from(&store, key.clone()).await?, Some(my_value));
    // Delete a value
    MyDynamicValue::delete_anyway(&store, key.clone()).await?;
    assert_eq!(MyDynamicValue::read_from(&store, key).await?, None);
    Ok(())
}

/// "Static Key Values".
async fn static_key_values(store: &Store) -> Outcome {
    use shizuku_kv::{KeyValue, StaticKeyIndexedValue};
    // Define a type with a static key
    #[derive(
        serde::Serialize, serde::Deserialize, shizuku_kv::JsonByteSer, shizuku_kv::JsonByteDes,
    )]
    struct MyConfig {
        // your fields here
        limit: u32,
    }
    impl StaticKeyIndexedValue for MyConfig {
        fn key() -> String {
            "app.config".to_string()
        }
    }
    let my_config = MyConfig { limit: 5 };
    // Now you can use the KV operations
    let value = MyConfig::read_from(&store, MyConfig::key()).await?;
    assert!(value.is_none());
    // Write a value
    let revision = my_config.write_to_anyway(&store).await?;
    // Atomic write with version check
    my_config.write_to_atomically(&store, revision).await?;
    assert_eq!(MyConfig::read_from(&store, MyConfig::key()).await?.unwrap().limit, 5);
    // Delete a value
    MyConfig::delete_anyway(&store, MyConfig::key()).await?;
    assert!(MyConfig::read_from(&store, MyConfig::key()).await?.is_none());
    Ok(())
}

mod watching {
    /// A type of its own, so that the snippet has no other trait in scope.
    #[derive(
        Debug,
        PartialEq,
        serde::Serialize,
        serde::Deserialize,
        shizuku_kv::JsonByteSer,
        shizuku_kv::JsonByteDes,
        shizuku_kv::KeyValue,
    )]
    #[kv(key = "watched.{id}")]
    pub(super) struct MyValue {
        pub(super) id: u8,
        pub(super) text: String,
    }
}

/// "Watching for Changes".
async fn watching_for_changes(store: &Store) -> Outcome {
    use watching::{MyValue, MyValueKey};
    let key = MyValueKey { id: 1 };
    {
        use shizuku_kv::KeyValue;
        MyValue { id: 1, text: "first".to_owned() }.write_to_anyway(store).await?;
    }
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            use shizuku_kv::KeyValue;
            MyValue { id: 1, text: "second".to_owned() }.write_to_anyway(&store).await.map(|_| ())
        }
    });

    let mut texts = Vec::new();
    use shizuku_kv::KeyValueRead;
    let watch = MyValue::watch(&store, key).await?;
    while let Some(entry) = watch.next().await {
        // Handle updated value
        if let TypedUpdate::Put(entry) = entry? {
            texts.push(entry.text.clone());
            if entry.text == "second" {
                break;
            }
        }
    }
    writer.await??;
    assert_eq!(texts.last().map(String::as_str), Some("second"));
    Ok(())
}

/// "Configuration Storage Example".
mod configuration_storage {
    use shizuku_kv::Store;

    use serde::{Deserialize, Serialize};
    use shizuku_kv::JsonByteDes;
    use shizuku_kv::{KeyValue, StaticKeyIndexedValue};

    #[derive(Serialize, Deserialize, JsonByteDes)]
    struct DatabaseConfig {
        url: String,
        username: String,
        password: String,
        max_connections: u32,
    }
    impl StaticKeyIndexedValue for DatabaseConfig {
        fn key() -> String {
            "config.database".to_string()
        }
    }
    pub(super) async fn initialize_database(store: &Store) -> Result<DatabasePool, Error> {
        // Read config from KV store
        let config = match DatabaseConfig::read_from(store, DatabaseConfig::key()).await? {
            Some(config) => config,
            None => return Err(Error::ConfigNotFound),
        };
        // Initialize database connection pool
        DatabasePool::connect(&config.url)
            .with_credentials(&config.username, &config.password)
            .with_max_connections(config.max_connections)
            .build()
            .await
    }

    #[derive(Debug)]
    pub(super) enum Error {
        ConfigNotFound,
        Read(shizuku_kv::KvReadError),
    }

    impl From<shizuku_kv::KvReadError> for Error {
        fn from(error: shizuku_kv::KvReadError) -> Self {
            Self::Read(error)
        }
    }

    #[derive(Debug, Default, PartialEq)]
    pub(super) struct DatabasePool {
        pub(super) url: String,
        pub(super) credentials: (String, String),
        pub(super) max_connections: u32,
    }

    impl DatabasePool {
        fn connect(url: &str) -> Self {
            Self { url: url.to_owned(), ..Self::default() }
        }

        fn with_credentials(mut self, username: &str, password: &str) -> Self {
            self.credentials = (username.to_owned(), password.to_owned());
            self
        }

        fn with_max_connections(mut self, connections: u32) -> Self {
            self.max_connections = connections;
            self
        }

        async fn build(self) -> Result<Self, Error> {
            Ok(self)
        }
    }
}

async fn configuration_storage_example(store: &Store) -> Outcome {
    use configuration_storage::{Error, initialize_database};
    assert!(matches!(initialize_database(store).await, Err(Error::ConfigNotFound)));
    let config = r#"{"url": "postgres://db", "username": "app", "password": "hunter2", "max_connections": 8}"#;
    store.put("config.database", config).await?;
    let pool = initialize_database(store).await.unwrap();
    assert_eq!((pool.url.as_str(), pool.max_connections), ("postgres://db", 8));
    assert_eq!(pool.credentials, ("app".to_owned(), "hunter2".to_owned()));

    store.put("config.database", r#"{"url": "hunter2", "max_connections": "hunter2"}"#).await?;
    let Err(Error::Read(error)) = initialize_database(store).await else {
        panic!("a bad value was read")
    };
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    Ok(())
}

/// "Basic Lock Usage".
async fn basic_lock_usage(store: &Store) -> Outcome {
    use shizuku_kv::rw_lock::DistroRwLock;

    // Acquire read lock
    DistroRwLock::acquire_read(&store, "my-resource").await?;
    // ... perform read operations ...
    DistroRwLock::release_read(&store, "my-resource").await?;

    // Acquire write lock
    DistroRwLock::acquire_write(&store, "my-resource").await?;
    // ... perform write operations ...
    DistroRwLock::release_write(&store, "my-resource").await?;
    Ok(())
}

/// "RAII Lock Wrappers".
mod lock_wrappers {
    use std::sync::Arc;

    use shizuku_kv::Store;
    use shizuku_kv::rw_lock::{LockedResourceReadProcessor, LockedResourceWriteProcessor};

    /// The processor of the snippet; elsewhere, so that its trait is not in scope there.
    mod theirs {
        use shizuku_kv::Processor;

        pub(super) struct Double;

        impl Processor<u32> for Double {
            type Output = u32;
            type Error = std::num::TryFromIntError;

            async fn process(&self, input: u32) -> Result<u32, Self::Error> {
                Ok(input * 2)
            }
        }
    }

    pub(super) async fn on_the_fly(store: &Store) -> super::Outcome {
        let (my_processor, input) = (theirs::Double, 21);
        // Create read-locked processor on the fly
        let result =
            LockedResourceReadProcessor::new(Arc::new(my_processor), &store, "my-resource")
                .process(input)
                .await?;
        assert_eq!(result, 42);
        let my_processor = theirs::Double;
        // Create write-locked processor on the fly
        let result =
            LockedResourceWriteProcessor::new(Arc::new(my_processor), &store, "my-resource")
                .process(input)
                .await?;
        assert_eq!(result, 42);
        Ok(())
    }
}

async fn every_snippet(url: &str) -> Outcome {
    let connection = shizuku_kv::connect(url).await?;
    let name = unique("seed-docs");
    let store = connection.store(&name).await?;
    basic_operations(&store).await?;
    static_key_values(&store).await?;
    watching_for_changes(&store).await?;
    configuration_storage_example(&store).await?;
    basic_lock_usage(&store).await?;
    lock_wrappers::on_the_fly(&store).await?;
    connection.delete_store(&name).await?;
    Ok(())
}

#[tokio::test]
async fn on_memory() -> Outcome {
    every_snippet("memory:").await
}

#[tokio::test]
async fn on_nats() -> Outcome {
    every_snippet(&NatsServer::shared().url()).await
}
