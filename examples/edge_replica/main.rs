//! An edge node that keeps the routes of a store in memory, and in a log beside it. After a
//! restart, or a `kill -9`, it has them before any request to the network, and then receives only
//! the missed updates.
//!
//! Without arguments it is a demonstration, in memory or on NATS:
//! `cargo run --example edge_replica`. With a store that other processes see, such as a NATS server
//! with JetStream, one terminal is the node:
//!
//! ```text
//! export SHIZUKU_KV_URL=nats://127.0.0.1
//! cargo run --example edge_replica -- serve /tmp/edge
//! ```
//!
//! And in a second terminal, with the same `SHIZUKU_KV_URL`:
//!
//! ```text
//! cargo run --example edge_replica -- set www.example.com 10.0.0.1:80
//! cargo run --example edge_replica -- set api.example.com 10.0.0.2:80
//! pkill -9 edge_replica
//! cargo run --example edge_replica -- lookup /tmp/edge www.example.com
//! cargo run --example edge_replica -- set www.example.com 10.0.0.3:80
//! ```
//!
//! Start the node again, and it prints the number of updates that the restart has cost. `edge.rs`
//! is the node, and `demonstration.rs` runs without arguments.

mod demonstration;
mod edge;

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs, io};

use serde::{Deserialize, Serialize};
use shizuku_kv::replica::{CancellationToken, LogStorage, Replica, ReplicaError, ReplicaMonitor};
use shizuku_kv::snapshot::{self, SnapshotOptions};
use shizuku_kv::{
    Connection, KeyValue, KvError, Store, StoreConfig, TypedEntry, URL_VARIABLE, VersionToken,
    WatchLink, connect,
};
use tokio::time::{sleep, timeout};

const USAGE: &str = "\
usage: edge_replica [--store NAME] [COMMAND]
  serve DIRECTORY            keeps the routes, in a log in the directory, and prints what changes
  set HOST ADDRESS           adds a route or replaces it
  remove HOST                deletes it
  set-raw KEY TEXT           writes the text as it is, like a program that knows no type
  lookup DIRECTORY HOST      prints where a host is, from the log, without the store
  list DIRECTORY             prints all routes in the log, without the store
Without a command it is a demonstration. SHIZUKU_KV_URL names where stores are; without it they are in memory.";

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The address for requests to a host.
#[derive(Serialize, Deserialize, KeyValue)]
#[kv(key = "route.{host}", codec = json)]
struct Route {
    host: String,
    address: SocketAddr,
}

/// Runs the node: restores its routes, then follows the changes until it is stopped.
async fn serve(url: &str, name: &str, directory: &Path) -> Outcome {
    let stop = stop_when_told()?;
    fs::create_dir_all(directory)?;
    let storage = LogStorage::open(edge::log(directory), SnapshotOptions::new()).await?;
    let (routes, errors) = edge::Routes::restore(&storage);
    // The node could answer requests from here on, without the store.
    println!("{}", edge::restored(&routes, &storage));
    for error in errors {
        println!("refused: {error}");
    }
    let Some((connection, store)) = open(url, name, &stop).await? else {
        println!("stopped before the store was there");
        return Ok(());
    };

    let mut replica = Replica::new(&store, RouteKey::scope()).storage(storage).stop_on(stop);
    let troubles = tokio::spawn(report_troubles(replica.monitor()));
    let followed = edge::follow(&mut replica, &routes, |event| println!("{event}")).await;
    troubles.abort();
    match followed? {
        Some(cursor) => println!("stopped at position {}", cursor.position()),
        None => println!("stopped, and no position to go on from"),
    }
    // The node has written nothing to the store, so nothing is lost if this fails.
    if let Err(error) = connection.shutdown().await {
        eprintln!("edge_replica: {error}");
    }
    Ok(())
}

/// Opens the store, however long that takes. Returns `None` if the node is stopped before. A node
/// that has its routes can wait.
async fn open(
    url: &str,
    name: &str,
    stop: &CancellationToken,
) -> Outcome<Option<(Arc<dyn Connection>, Store)>> {
    // A node creates no store, because an empty one in place of the right one would remove all its
    // routes.
    let config = StoreConfig::new().must_exist();
    let mut is_told = false;
    loop {
        let opened = async {
            let connection = connect(url).await?;
            let store = connection.store_with_config(name, config.clone()).await?;
            Ok((connection, store))
        };
        let error: KvError = tokio::select! {
            opened = opened => match opened {
                Ok(opened) => return Ok(Some(opened)),
                Err(error) => error,
            },
            () = stop.cancelled() => return Ok(None),
        };
        if !error.is_retryable() && !matches!(error, KvError::StoreNotFound { .. }) {
            return Err(error.into());
        }
        if !is_told {
            println!("waiting for the store: {error}");
        }
        is_told = true;
        tokio::select! {
            () = sleep(Duration::from_millis(500)) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// Prints when the store is away, or the log cannot be written. The node continues with its present
/// routes.
async fn report_troubles(mut monitor: ReplicaMonitor) {
    /// A replica is down until its store has answered for the first time, which takes less.
    const GRACE: Duration = Duration::from_secs(1);

    let (mut is_down, mut reported) = (false, None);
    // The end of the grace is not a change of the monitor.
    while !matches!(timeout(GRACE, monitor.changed()).await, Ok(None)) {
        let progress = monitor.progress();
        match &progress.link {
            WatchLink::Down { since, reason, .. }
                if !is_down && since.elapsed().is_ok_and(|down| down >= GRACE) =>
            {
                println!("the store is not heard from: {reason}");
                is_down = true;
            }
            WatchLink::Up if is_down => {
                println!("the store is heard from again");
                is_down = false;
            }
            _ => {}
        }
        let error = progress
            .last_error
            .as_deref()
            .filter(|error| matches!(error, ReplicaError::Storage { .. }));
        let error = error.map(ToString::to_string);
        if error != reported {
            println!("{}", error.as_deref().unwrap_or("the log is written again"));
            reported = error;
        }
    }
}

/// Returns a token that Ctrl-C cancels, and on Unix SIGTERM too.
fn stop_when_told() -> io::Result<CancellationToken> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    #[cfg(unix)]
    let terminated = async move { terminate.recv().await };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated => {}
            }
            stop.cancel();
        }
    });
    Ok(stop)
}

fn lookup(directory: &Path, host: &str) -> Outcome {
    let state = snapshot::load(edge::log(directory))?;
    let key = RouteKey { host: host.to_owned() }.to_string();
    let entry = state.entries.get(&key).ok_or_else(|| format!("there is no route for {host}"))?;
    println!("{}", TypedEntry::<Route>::decode(&entry)?.address);
    Ok(())
}

fn list(directory: &Path) -> Outcome {
    let state = snapshot::load(edge::log(directory))?;
    let routes = state.entries.iter().map(|entry| TypedEntry::<Route>::decode(&entry.to_entry()));
    let mut routes = routes.collect::<Result<Vec<_>, _>>()?;
    routes.sort_by(|one, other| one.host.cmp(&other.host));
    for route in routes {
        println!("{}: {}", route.host, route.address);
    }
    Ok(())
}

enum Command {
    Demonstrate,
    Serve(PathBuf),
    Lookup(PathBuf, String),
    List(PathBuf),
    Change(Change),
}

/// A change to write to the store.
enum Change {
    Set(Route),
    Remove(RouteKey),
    SetRaw(String, String),
}

impl Command {
    fn parse(words: &[&str]) -> Outcome<Self> {
        Ok(match *words {
            [] => Self::Demonstrate,
            ["serve", directory] => Self::Serve(directory.into()),
            ["lookup", directory, host] => Self::Lookup(directory.into(), host.to_owned()),
            ["list", directory] => Self::List(directory.into()),
            ["set", host, address] => {
                let address =
                    address.parse().map_err(|_| "an ADDRESS is one such as 10.0.0.1:80")?;
                Self::Change(Change::Set(Route { host: host.to_owned(), address }))
            }
            ["remove", host] => Self::Change(Change::Remove(RouteKey { host: host.to_owned() })),
            ["set-raw", key, text] => Self::Change(Change::SetRaw(key.to_owned(), text.to_owned())),
            _ => return Err(USAGE.into()),
        })
    }

    async fn carry_out(self, url: &str, name: &str) -> Outcome {
        // Shows only the scheme, because the rest of the URL can contain a password.
        let scheme = url.split(':').next().unwrap_or_default();
        if matches!(self, Self::Serve(_) | Self::Change(_)) && scheme.eq_ignore_ascii_case("memory")
        {
            eprintln!(
                "edge_replica: no other process sees what is in memory; {URL_VARIABLE} names another place"
            );
        }
        match self {
            Self::Demonstrate => demonstration::run(&*connect(url).await?, scheme).await,
            Self::Serve(directory) => serve(url, name, &directory).await,
            Self::Lookup(directory, host) => lookup(&directory, &host),
            Self::List(directory) => list(&directory),
            Self::Change(change) => {
                let connection = connect(url).await?;
                let version = change.carry_out(&connection.store(name).await?).await?;
                println!("version {version}");
                Ok(connection.shutdown().await?)
            }
        }
    }
}

impl Change {
    async fn carry_out(self, store: &Store) -> Outcome<VersionToken> {
        Ok(match self {
            Self::Set(route) => route.write_to_anyway(store).await?,
            Self::Remove(key) => Route::delete_anyway(store, key).await?,
            Self::SetRaw(key, text) => store.put(key, text).await?,
        })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edge_replica: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Outcome {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, words) = match &*words {
        ["--store", name, words @ ..] => (*name, words),
        words => ("edge-replica", words),
    };
    let command = Command::parse(words)?;
    let url = env::var(URL_VARIABLE).unwrap_or_else(|_| "memory:".to_owned());
    command.carry_out(&url, name).await
}
