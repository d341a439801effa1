//! A registry of services, and a router that always knows the instances of each, and picks one
//! without a request.
//!
//! Without arguments it is a demonstration, in memory or on NATS: `cargo run --example live_map`.
//! With a store that other processes see, such as a NATS server with JetStream, one terminal
//! follows the changes of others:
//!
//! ```text
//! export SHIZUKU_KV_URL=nats://127.0.0.1
//! cargo run --example live_map -- watch
//! ```
//!
//! And in a second terminal, with the same `SHIZUKU_KV_URL`:
//!
//! ```text
//! cargo run --example live_map -- register web 1 10.0.0.1:80
//! cargo run --example live_map -- register web 2 10.0.0.2:80
//! cargo run --example live_map -- drain web 1
//! cargo run --example live_map -- pick web
//! cargo run --example live_map -- set-raw service.web.2 '{"address": "nowhere"}'
//! cargo run --example live_map -- remove web 1
//! ```
//!
//! `demonstration.rs` runs without arguments.

mod demonstration;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fmt};

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    KeyValue, KeyValueWrite, LiveMap, LiveMapChange, LiveRead, LiveRejection, LiveSnapshot, Store,
    TypedEntry, URL_VARIABLE, VersionToken, WatchLink, connect,
};

const USAGE: &str = "\
usage: live_map [--store NAME] [COMMAND]
  watch [--name NAME]        prints what changes, of one service or of all
  pick NAME                  prints where a request for a service goes
  list                       prints all instances, and what is refused
  register NAME ID ADDRESS   adds an instance or replaces it
  drain NAME ID              leaves it registered, and sends it nothing more
  remove NAME ID             deletes it
  set-raw KEY TEXT           writes the text as it is, like a program that knows no type
Without a command it is a demonstration. SHIZUKU_KV_URL names where stores are; without it they are in memory.";

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Instances = LiveMap<InstanceKey, Instance>;

/// One process of a service.
#[derive(Serialize, Deserialize, KeyValue)]
#[kv(key = "service.{name}.{id}", codec = json)]
struct Instance {
    name: String,
    id: u32,
    address: SocketAddr,
    /// True if it gets no more requests.
    #[serde(default)]
    draining: bool,
}

impl Instance {
    /// Changes the stored instance by compare-and-swap, so that concurrent changes are not lost.
    async fn drain(store: &Store, key: InstanceKey) -> Outcome<VersionToken> {
        let change = |instance: Option<_>| Some(Self { draining: true, ..instance? });
        let drained = Self::modify(store, key.clone(), change).await?;
        let version = drained.as_ref().map(TypedEntry::version);
        Ok(version.ok_or_else(|| format!("{key} is not registered"))?)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address, if self.draining { ", draining" } else { "" })
    }
}

/// Sends requests to the instances of a service in turn.
struct Router {
    instances: Instances,
    turn: AtomicUsize,
}

impl Router {
    fn new(instances: Instances) -> Self {
        Self { instances, turn: AtomicUsize::new(0) }
    }

    /// Returns the instance for the next request. It is not an `async fn`, because it neither waits
    /// nor takes a lock.
    fn pick(&self, name: &str) -> Outcome<Arc<LiveSnapshot<Instance>>> {
        let key = |id| InstanceKey { name: name.to_owned(), id };
        // One snapshot, so that the instance is picked from the counted ones.
        let instances = self.instances.snapshot();
        let of_service = || instances.range(key(0)..=key(u32::MAX)).map(|(_, instance)| instance);
        let ready = || of_service().filter(|instance| !instance.draining);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(ready().count());
        let picked = turn.and_then(|turn| ready().nth(turn));
        Ok(Arc::clone(picked.ok_or_else(|| format!("no instance of {name} takes requests"))?))
    }
}

/// Prints the present instances, then changes, rejected records, and outages of the store. Ends
/// when no change can follow.
async fn watch(instances: &Instances) {
    let (changes, statuses) = (instances.changes(), instances.statuses());
    // Prints the start of the changes, and not the present map, so that no change is missed or
    // printed twice.
    for (key, instance) in changes.snapshot().iter() {
        println!("{key}: {}", shown(instance));
    }
    let mut told = print_rejections(instances, &[]);
    let mut was_up = true;
    println!("following");
    loop {
        tokio::select! {
            biased;
            change = changes.next() => match change {
                Some(change) => println!("{}", changed(&change)),
                // Ends only if the connection was shut down.
                None => return,
            },
            Some(status) = statuses.next() => {
                told = print_rejections(instances, &told);
                match &status.link {
                    WatchLink::Down { reason, .. } if was_up => println!("the store is not heard from: {reason}"),
                    WatchLink::Up if !was_up => println!("the store is heard from again"),
                    _ => {}
                }
                was_up = status.link.is_up();
            }
        }
    }
}

/// Prints the rejected records that were not `told`, and returns all rejected ones.
fn print_rejections(instances: &Instances, told: &[LiveRejection]) -> Vec<LiveRejection> {
    let rejections = instances.rejections();
    for new in &rejections {
        if !told.iter().any(|old| (&old.key, old.version) == (&new.key, new.version)) {
            println!("refused: {}", refused(instances, new));
        }
    }
    rejections
}

/// Describes the rejection and the current record. The error names the type, the key and the fault,
/// but not the value, so it is safe to show.
fn refused(instances: &Instances, rejection: &LiveRejection) -> String {
    // The store's key may not be one of the type. No record is current under such a key.
    let in_force =
        rejection.key.as_str().parse().ok().and_then(|key: InstanceKey| instances.get(&key));
    let in_force = in_force.map_or_else(|| "nothing".to_owned(), |instance| shown(&instance));
    format!("{}; in force is {in_force}", rejection.error)
}

fn changed(change: &LiveMapChange<InstanceKey, Instance>) -> String {
    let key = &change.key;
    match (&change.old, &change.new) {
        (None, Some(new)) => format!("{key}: new, {}", shown(new)),
        (Some(old), Some(new)) => format!("{key}: {} -> {}", shown(old), shown(new)),
        (Some(old), None) => format!("{key}: gone, was {}", shown(old)),
        // A change has at least one of them.
        (None, None) => key.to_string(),
    }
}

fn shown(instance: &LiveSnapshot<Instance>) -> String {
    let version = LiveSnapshot::version(instance).map(|version| format!(" (version {version})"));
    format!("{}{}", **instance, version.unwrap_or_default())
}

enum Command {
    Watch(Option<String>),
    Pick(String),
    List,
    Register(Instance),
    Drain(InstanceKey),
    Remove(InstanceKey),
    SetRaw(String, String),
}

impl Command {
    /// Returns the command, if one is given.
    fn parse(words: &[&str]) -> Outcome<Option<Self>> {
        let key = |name: &str, id: &str| {
            let id = id.parse().map_err(|_| "an ID is a number")?;
            Ok::<_, &str>(InstanceKey { name: name.to_owned(), id })
        };
        Ok(Some(match *words {
            [] => return Ok(None),
            ["watch"] => Self::Watch(None),
            ["watch", "--name", name] => Self::Watch(Some(name.to_owned())),
            ["pick", name] => Self::Pick(name.to_owned()),
            ["list"] => Self::List,
            ["register", name, id, address] => {
                let InstanceKey { name, id } = key(name, id)?;
                let address =
                    address.parse().map_err(|_| "an ADDRESS is one such as 10.0.0.1:80")?;
                Self::Register(Instance { name, id, address, draining: false })
            }
            ["drain", name, id] => Self::Drain(key(name, id)?),
            ["remove", name, id] => Self::Remove(key(name, id)?),
            ["set-raw", key, text] => Self::SetRaw(key.to_owned(), text.to_owned()),
            _ => return Err(USAGE.into()),
        }))
    }

    async fn carry_out(self, store: &Store) -> Outcome {
        let version = match self {
            Self::Watch(name) => {
                let instances = match name {
                    Some(name) => {
                        Instance::live_map_scope(store, InstanceKey::scope_name(name)).await?
                    }
                    None => Instance::live_map(store).await?,
                };
                watch(&instances).await;
                return Ok(());
            }
            Self::Pick(name) => {
                let scope = InstanceKey::scope_name(&name);
                let router = Router::new(Instance::live_map_scope(store, scope).await?);
                println!("{}", router.pick(&name)?.address);
                return Ok(());
            }
            Self::List => {
                let instances = Instance::live_map(store).await?;
                for (key, instance) in instances.snapshot().iter() {
                    println!("{key}: {}", shown(instance));
                }
                print_rejections(&instances, &[]);
                return Ok(());
            }
            Self::Register(instance) => instance.write_to_anyway(store).await?,
            Self::Drain(key) => Instance::drain(store, key).await?,
            Self::Remove(key) => Instance::delete_anyway(store, key).await?,
            Self::SetRaw(key, text) => store.put(key, text).await?,
        };
        println!("version {version}");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("live_map: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Outcome {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, words) = match &*words {
        ["--store", name, words @ ..] => (*name, words),
        words => ("live-map", words),
    };
    let command = Command::parse(words)?;
    let url = env::var(URL_VARIABLE).unwrap_or_else(|_| "memory:".to_owned());
    let connection = connect(&url).await?;
    // Shows only the scheme, because the rest of the URL can contain a password.
    let scheme = url.split(':').next().unwrap_or_default();
    let done = match command {
        None => demonstration::run(&*connection, scheme).await,
        Some(command) => {
            if scheme.eq_ignore_ascii_case("memory") {
                eprintln!(
                    "live_map: no other process sees what is in memory; {URL_VARIABLE} names another place"
                );
            }
            command.carry_out(&connection.store(name).await?).await
        }
    };
    // All writes were acknowledged, so nothing is lost if this fails.
    if let Err(error) = connection.shutdown().await {
        eprintln!("live_map: {error}");
    }
    done
}
