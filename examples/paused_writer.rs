//! The accident that no lock alone prevents. A writer acquires a lock, is paused for longer than
//! its lease, wakes up, and writes as if nothing had happened. The example runs it once with plain
//! writes, and once with the lock's fencing token in the writes.
//!
//! In memory: `cargo run --example paused_writer`. On NATS, with a server that has JetStream:
//! `SHIZUKU_KV_URL=nats://127.0.0.1:4222 cargo run --example paused_writer`.

use std::error::Error;
use std::sync::mpsc;
use std::time::Duration;
use std::{env, process, thread};

use serde::{Deserialize, Serialize};
use shizuku_kv::rw_lock::{DistroRwLock, LockOptions, WriteGuard};
use shizuku_kv::{
    JsonByteDes, JsonByteSer, KeyValue, KvWriteError, StaticKeyIndexedValue, Store, URL_VARIABLE,
    connect,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Number of items that are left. A seller reads it, and writes the rest.
#[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
#[kv(key = "shop.stock")]
struct Stock {
    left: u32,
}

/// The kind of writes, with or without the token.
#[derive(Clone, Copy)]
enum Writes {
    Plain,
    Fenced,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let url = env::var(URL_VARIABLE).unwrap_or_else(|_| "memory:".to_owned());
    let connection = connect(&url).await?;
    let name = format!("paused-writer-{}", process::id());
    let store = connection.store(&name).await?;
    let told = both(&store).await;
    // Cleans up even if the example ended early.
    let deleted = connection.delete_store(&name).await;
    connection.shutdown().await?;
    told?;
    deleted?;
    Ok(())
}

async fn both(store: &Store) -> Outcome<()> {
    println!("with a lock alone");
    tell(store, Writes::Plain).await?;
    println!("with the lock's fencing token");
    tell(store, Writes::Fenced).await
}

async fn tell(store: &Store, writes: Writes) -> Outcome<()> {
    Stock { left: 10 }.write_to_anyway(store).await?;
    println!("  10 are left");
    let (paused, is_paused) = mpsc::channel();
    let (wakes, awake) = mpsc::channel();
    // The store sees this thread as a program of its own. Nothing of it runs while it is paused,
    // not even its renewals. A garbage collection, a migrated machine or a closed laptop looks the
    // same from outside.
    let first = thread::spawn({
        let store = store.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(first_writer(&store, writes, &paused, &awake))
        }
    });
    tokio::task::spawn_blocking(move || is_paused.recv()).await??;
    second_writer(store, writes).await?;
    wakes.send(())?;
    let ended = tokio::task::spawn_blocking(move || first.join()).await?;
    ended.map_err(|_| "the first writer panicked")??;
    let stock = Stock::read(store).await?.ok_or("the stock is gone")?;
    let follows = match writes {
        Writes::Plain => "as if the 3 had never been sold",
        Writes::Fenced => "and the first writer knows that it has sold nothing",
    };
    println!("  {} are left, {follows}", stock.left);
    Ok(())
}

/// Acquires the lock, reads, is paused, and sells one.
async fn first_writer(
    store: &Store,
    writes: Writes,
    paused: &mpsc::Sender<()>,
    awake: &mpsc::Receiver<()>,
) -> Outcome<()> {
    let guard = lock(store)?.write().await?;
    let left = Stock::read(store).await?.ok_or("the stock is gone")?.left;
    println!("  the first writer has the lock, and is paused");
    paused.send(())?;
    // Blocks the thread on which everything of this writer runs: this is the pause.
    awake.recv()?;
    println!("  the first writer wakes up, and sells 1");
    match sell(store, left, 1, writes, &guard).await {
        Ok(()) => println!("  its write is taken"),
        Err(KvWriteError::Store(error)) if error.is_fenced() => {
            println!("  its write is refused: {error}")
        }
        Err(error) => return Err(error.into()),
    }
    // Checking the lock before would help, but a pause can also come between the check and the
    // write.
    println!("  does it hold the lock? {}", guard.is_held());
    Ok(())
}

/// Waits for the lock, which expires because its holder does not renew it, and sells three.
async fn second_writer(store: &Store, writes: Writes) -> Outcome<()> {
    let guard = lock(store)?.write().await?;
    let left = Stock::read(store).await?.ok_or("the stock is gone")?.left;
    sell(store, left, 3, writes, &guard).await?;
    println!("  the second writer has got the lock, and has sold 3");
    guard.release().await?;
    Ok(())
}

/// Returns a lock with the shortest possible lease, for a short example.
fn lock(store: &Store) -> Outcome<DistroRwLock> {
    let options = LockOptions::new().lease(Duration::from_secs(1));
    Ok(DistroRwLock::with_options(store, "shop.stock", options)?)
}

async fn sell(
    store: &Store,
    left: u32,
    number: u32,
    writes: Writes,
    guard: &WriteGuard,
) -> Result<(), KvWriteError> {
    let stock = Stock { left: left - number };
    match writes {
        Writes::Plain => stock.write_to_anyway(store).await?,
        Writes::Fenced => stock.write_fenced(store, guard.fencing_token()).await?,
    };
    Ok(())
}
