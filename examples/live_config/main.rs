//! A service whose pool and feature flags follow the store while it runs.
//!
//! Without arguments it is a demonstration, in memory or on NATS:
//! `cargo run --example live_config`. As a service it needs a store that other processes see, such
//! as a NATS server with JetStream:
//!
//! ```text
//! export SHIZUKU_KV_URL=nats://127.0.0.1
//! cargo run --example live_config -- serve --listen 127.0.0.1:8080
//! ```
//!
//! And in a second terminal, with the same `SHIZUKU_KV_URL`:
//!
//! ```text
//! cargo run --example live_config -- set pool_size=8 features=beta,dark
//! curl http://127.0.0.1:8080/config
//! cargo run --example live_config -- set-raw '{"pool_size": "many"}'
//! curl http://127.0.0.1:8080/status
//! cargo run --example live_config -- replace pool_size=6
//! ```
//!
//! This file has the settings of the service, and the commands that change them. `service.rs` is
//! the service, and `demonstration.rs` runs without arguments.

mod demonstration;
mod service;

use std::collections::BTreeSet;
use std::error::Error;
use std::process::ExitCode;
use std::{env, fmt};

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    Connection, KeyValue, KvWriteError, StaticKeyIndexedValue, Store, TypedEntry, URL_VARIABLE,
    VersionToken, connect,
};
use tokio::net::TcpListener;

const USAGE: &str = "\
usage: live_config [COMMAND] [--store NAME]
  serve [--listen HOST:PORT]                  the service, on a free port unless told
  set [pool_size=N] [features=NAME,NAME]      changes what is named and keeps the rest
  replace [pool_size=N] [features=NAME,NAME]  writes over what is there, also what cannot be read
  set-raw TEXT                                writes the text as it is, like a program that knows no rule
  show                                        prints the value
  delete                                      deletes it
Without a command it is a demonstration. SHIZUKU_KV_URL names where stores are; without it they are in memory.";

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Settings of the service that can change while it runs.
#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.service", codec = json, validate = ServiceConfig::check)]
struct ServiceConfig {
    pool_size: u32,
    #[serde(default)]
    features: BTreeSet<String>,
}

/// Current until the store has a good value.
impl Default for ServiceConfig {
    fn default() -> Self {
        Self { pool_size: 4, features: BTreeSet::new() }
    }
}

impl ServiceConfig {
    fn check(&self) -> Result<(), &'static str> {
        if (1..=100).contains(&self.pool_size) { Ok(()) } else { Err("`pool_size` is 1 to 100") }
    }

    fn features(&self) -> String {
        let names: Vec<_> = self.features.iter().map(String::as_str).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

impl fmt::Display for ServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a pool of {}, features: {}", self.pool_size, self.features())
    }
}

/// The settings to change. The others stay.
#[derive(Default)]
struct Changes {
    pool_size: Option<u32>,
    features: Option<BTreeSet<String>>,
}

impl Changes {
    /// Parses words like `pool_size=8` and `features=beta,dark`.
    fn parse(words: &[String]) -> Outcome<Self> {
        let mut changes = Self::default();
        for word in words {
            match word.split_once('=') {
                Some(("pool_size", size)) => {
                    changes.pool_size = Some(size.parse().map_err(|_| "`pool_size` is a number")?);
                }
                Some(("features", names)) => {
                    let names = names.split(',').filter(|name| !name.is_empty());
                    changes.features = Some(names.map(str::to_owned).collect());
                }
                _ => return Err(USAGE.into()),
            }
        }
        Ok(changes)
    }

    fn apply(&self, mut config: ServiceConfig) -> ServiceConfig {
        config.pool_size = self.pool_size.unwrap_or(config.pool_size);
        if let Some(features) = &self.features {
            config.features.clone_from(features);
        }
        config
    }
}

/// Changes the settings by compare-and-swap, so that two writers of different fields do not undo
/// each other.
async fn set(store: &Store, changes: &Changes) -> Outcome<VersionToken> {
    let change = |config: Option<_>| Some(changes.apply(config.unwrap_or_default()));
    match ServiceConfig::modify_value(store, change).await {
        Ok(written) => {
            Ok(written.as_ref().map(TypedEntry::version).ok_or("nothing was written")?)
        }
        // A value that cannot be read has no settings to keep.
        Err(error @ KvWriteError::Read(_)) => {
            Err(format!("{error}; `replace` writes over it").into())
        }
        Err(error) => Err(error.into()),
    }
}

enum Command {
    Serve { listen: String },
    Set(Changes),
    Replace(ServiceConfig),
    SetRaw(String),
    Show,
    Delete,
}

impl Command {
    /// Returns the command, if one is given, and the name of the store.
    fn parse(mut arguments: Vec<String>) -> Outcome<(Option<Self>, String)> {
        let store = take_option(&mut arguments, "--store", "live-config")?;
        let listen = take_option(&mut arguments, "--listen", "127.0.0.1:0")?;
        let Some((name, words)) = arguments.split_first() else { return Ok((None, store)) };
        let command = match (name.as_str(), words) {
            ("serve", []) => Self::Serve { listen },
            ("set", words) => Self::Set(Changes::parse(words)?),
            ("replace", words) => {
                Self::Replace(Changes::parse(words)?.apply(ServiceConfig::default()))
            }
            ("set-raw", [text]) => Self::SetRaw(text.clone()),
            ("show", []) => Self::Show,
            ("delete", []) => Self::Delete,
            _ => return Err(USAGE.into()),
        };
        Ok((Some(command), store))
    }
}

/// Removes an option from the arguments, and returns its value.
fn take_option(arguments: &mut Vec<String>, name: &str, default: &str) -> Outcome<String> {
    let Some(index) = arguments.iter().position(|argument| argument == name) else {
        return Ok(default.to_owned());
    };
    arguments.remove(index);
    if index == arguments.len() {
        return Err(USAGE.into());
    }
    Ok(arguments.remove(index))
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("live_config: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Outcome {
    let (command, name) = Command::parse(env::args().skip(1).collect())?;
    let url = env::var(URL_VARIABLE).unwrap_or_else(|_| "memory:".to_owned());
    let connection = connect(&url).await?;
    // Shows only the scheme, because the rest of the URL can contain a password.
    let scheme = url.split(':').next().unwrap_or_default();
    let done = match command {
        None => demonstration::run(&*connection, scheme).await,
        Some(command) => {
            if scheme.eq_ignore_ascii_case("memory") {
                eprintln!(
                    "live_config: no other process sees what is in memory; {URL_VARIABLE} names another place"
                );
            }
            carry_out(command, &*connection, &name).await
        }
    };
    // All writes were acknowledged, so nothing is lost if this fails.
    if let Err(error) = connection.shutdown().await {
        eprintln!("live_config: {error}");
    }
    done
}

async fn carry_out(command: Command, connection: &dyn Connection, name: &str) -> Outcome {
    let store = &connection.store(name).await?;
    let version = match command {
        Command::Serve { listen } => {
            return service::serve(
                store,
                TcpListener::bind(listen).await?,
                service::told_to_end()?,
            )
            .await;
        }
        Command::Show => {
            match ServiceConfig::atomic_read(store).await? {
                Some(config) => println!("version {}: {}", TypedEntry::version(&config), *config),
                None => println!("no value"),
            }
            return Ok(());
        }
        Command::Set(changes) => set(store, &changes).await?,
        Command::Replace(config) => config.write_to_anyway(store).await?,
        Command::SetRaw(text) => store.put(ServiceConfig::key(), text).await?,
        Command::Delete => ServiceConfig::delete(store).await?,
    };
    println!("version {version}");
    Ok(())
}
