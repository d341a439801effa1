//! A service's configuration, written from a file into a store, and possible events there.
//!
//! In a folder of this machine: `cargo run --example quickstart`. A second run finds the number
//! that the first one has stored. In memory: `SHIZUKU_KV_URL=memory: cargo run --example
//! quickstart`. On NATS, with a server that has JetStream: `SHIZUKU_KV_URL=nats://127.0.0.1:4222`
//! instead.

use std::error::Error;
use std::{env, fmt, fs, process};

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    JsonByteDes, JsonByteSer, KeyValue, KeyValueRead, KeyValueWrite, KvError, KvReadError,
    KvWriteError, StaticKeyIndexedValue, Store, TypedEntry, TypedUpdate, URL_VARIABLE, connect,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/database.json");

/// One value at one key. It has no `Debug`, which would show the password.
#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
#[kv(key = "config.database")]
struct DatabaseConfig {
    url: String,
    username: String,
    password: String,
    max_connections: u32,
}

impl fmt::Display for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}, {} connections", self.url, self.username, self.max_connections)
    }
}

/// Many values, each with a key made of its fields.
#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
#[kv(key = "user.{tenant}.{id}")]
struct User {
    tenant: String,
    id: u64,
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var(URL_VARIABLE).unwrap_or_else(|_| {
        // Each user has a folder, because only its owner may write to it.
        let user = env::var("USER").or_else(|_| env::var("USERNAME")).unwrap_or_default();
        let folder = env::temp_dir().join(format!("shizuku-kv-quickstart-{user}"));
        format!("file:{}", folder.display())
    });
    let connection = connect(&url).await?;
    count_runs(&connection.store("quickstart-runs").await?).await?;
    // A unique name, so that concurrent runs do not interfere. On a folder they need
    // `?shared=true` in the URL, because the default mode rejects a second writer.
    let name = format!("quickstart-{}", process::id());
    let store = connection.store(&name).await?;
    // Shows only the scheme, because the rest of the URL can contain a password.
    let scheme = url.split(':').next().unwrap_or_default();
    say("open", format_args!("store {name} on {scheme}"));

    let told = tell(&store).await;

    // Cleans up even if the example ended early.
    let deleted = connection.delete_store(&name).await;
    connection.shutdown().await?;
    told?;
    deleted?;
    say("close", "the store is deleted");
    Ok(())
}

/// A number that outlives this process, unless the store is in memory.
#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "quickstart.runs", codec = json)]
struct Runs {
    number: u64,
}

async fn count_runs(store: &Store) -> Result<(), Box<dyn Error>> {
    let count = |runs: Option<Runs>| Runs { number: runs.map_or(0, |runs| runs.number) + 1 };
    let runs = Runs::modify_value(store, |runs| Some(count(runs))).await?;
    let number = runs.map_or(0, |runs| runs.number);
    say("count", format_args!("run {number} of this example on this store"));
    Ok(())
}

async fn tell(store: &Store) -> Result<(), Box<dyn Error>> {
    let json = fs::read_to_string(FILE)?;
    let config: DatabaseConfig = serde_json::from_str(&json)?;
    let version = config.create_write(store).await?;
    say("create", format_args!("{} from database.json, version {version}", DatabaseConfig::key()));
    if let Some(config) = DatabaseConfig::read(store).await? {
        say("read", config);
    }

    two_writers(store).await?;
    follow(store, &json).await?;
    users(store).await
}

/// Two writers read the same version. The first write wins, and the second returns a conflict.
async fn two_writers(store: &Store) -> Result<(), Box<dyn Error>> {
    let mut first = DatabaseConfig::atomic_read(store).await?.ok_or("no configuration")?;
    let mut second = DatabaseConfig::atomic_read(store).await?.ok_or("no configuration")?;

    first.max_connections = 30;
    let version = first.write_to_atomically(store, TypedEntry::version(&first)).await?;
    say(
        "swap",
        format_args!("first writer:  {} connections, now version {version}", first.max_connections),
    );

    second.max_connections += 5;
    match second.write_to_atomically(store, TypedEntry::version(&second)).await {
        Err(KvWriteError::Store(lost @ KvError::RevisionMismatch { .. })) => {
            say("", format_args!("second writer: refused: {lost}"));
        }
        Err(error) => return Err(error.into()),
        Ok(_) => return Err("the second writer overwrote the first".into()),
    }

    // Reads, changes and swaps, and retries while other writers are faster.
    let merged = DatabaseConfig::modify_value(store, |config| {
        config
            .map(|config| DatabaseConfig { max_connections: config.max_connections + 5, ..config })
    });
    let merged = merged.await?.ok_or("no configuration")?;
    let (connections, version) = (merged.max_connections, TypedEntry::version(&merged));
    say("", format_args!("second again:  {connections} connections, now version {version}"));
    Ok(())
}

/// Follows the configuration while other programs change it, break it and mend it.
async fn follow(store: &Store, json: &str) -> Result<(), Box<dyn Error>> {
    let changes = DatabaseConfig::watch_value(store).await?;
    say("watch", seen(changes.next().await)?);
    say("", seen(changes.next().await)?);

    let another = tokio::spawn({
        let store = store.clone();
        async move {
            let changed = |config| DatabaseConfig {
                url: "postgres://db2.internal:5432/shop".to_owned(),
                ..config
            };
            DatabaseConfig::modify_value(&store, |config| config.map(changed)).await
        }
    });
    another.await??;
    say("", seen(changes.next().await)?);

    // Another program does not know the type.
    store.put(DatabaseConfig::key(), json.replace(": 20", ": \"plenty\"")).await?;
    say("refuse", seen(changes.next().await)?);
    // A change does not overwrite it, because it could not be based on an unreadable value.
    match DatabaseConfig::modify_value(store, |config| config).await {
        Err(KvWriteError::Read(_)) => say("", "an update leaves it as it is"),
        _ => return Err("a bad value was read".into()),
    }

    serde_json::from_str::<DatabaseConfig>(json)?.write_to_anyway(store).await?;
    say("mend", seen(changes.next().await)?);
    DatabaseConfig::delete(store).await?;
    say("delete", seen(changes.next().await)?);
    Ok(())
}

/// Describes an item of a watch in a line. A record that does not decode is reported, and the watch
/// continues.
fn seen(
    update: Option<Result<TypedUpdate<DatabaseConfig>, KvReadError>>,
) -> Result<String, Box<dyn Error>> {
    match update.ok_or("the watch ended")? {
        Ok(TypedUpdate::Put(entry)) => {
            Ok(format!("{}, version {}", *entry, TypedEntry::version(&entry)))
        }
        Ok(TypedUpdate::Delete { key, version, .. }) => {
            Ok(format!("{key} is gone, version {version}"))
        }
        Ok(_) => Ok("caught up, live from here".to_owned()),
        Err(error @ KvReadError::Decode { .. }) => Ok(error.to_string()),
        Err(error) => Err(error.into()),
    }
}

/// Keys consist of fields, whatever text these contain.
async fn users(store: &Store) -> Result<(), Box<dyn Error>> {
    let ann = User { tenant: "acme.com".to_owned(), id: 7, name: "Ann".to_owned() };
    let bob = User { tenant: "acme".to_owned(), id: 8, name: "Bob".to_owned() };
    for written in User::write_many(store, [ann, bob]).await {
        written?;
    }
    let mut users = User::list(store).try_collect().await?;
    users.sort_by_key(|user| user.id);
    for user in users {
        say("user", format_args!("{} under {}", user.name, user.kv_key()));
    }
    Ok(())
}

fn say(what: &str, text: impl fmt::Display) {
    println!("{what:<8}{text}");
}
