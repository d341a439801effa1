//! The demonstration in one process: a node with a thousand routes ends, some routes change while
//! it is away, and it comes back.

use std::path::Path;
use std::time::Duration;
use std::{env, fmt, fs, process};

use shizuku_kv::replica::CancellationToken;
use shizuku_kv::replica::{LogStorage, Replica};
use shizuku_kv::snapshot::SnapshotOptions;
use shizuku_kv::{Connection, KeyValue, KeyValueWrite, Store};
use tokio::time::timeout;

use crate::edge::{self, Event, Routes};
use crate::{Outcome, Route, RouteKey};

const ROUTES: u16 = 1000;

pub(crate) async fn run(connection: &dyn Connection, scheme: &str) -> Outcome {
    // Unique names, so that concurrent runs do not interfere.
    let name = format!("edge-replica-{}", process::id());
    let directory = env::temp_dir().join(&name);
    let store = connection.store(&name).await?;
    fs::create_dir(&directory)?;
    say("open", format_args!("store {name} on {scheme}"));

    let told = timeout(Duration::from_secs(30), tell(&store, &directory)).await;

    // Cleans up even if the demonstration ended early.
    let removed = fs::remove_dir_all(&directory);
    let deleted = connection.delete_store(&name).await;
    told.map_err(|_| "a change has not come")??;
    removed?;
    deleted?;
    say("close", "the log is removed, and the store deleted");
    Ok(connection.shutdown().await?)
}

async fn tell(store: &Store, directory: &Path) -> Outcome {
    let route = |number: u16| Route {
        host: format!("www{number}.example.com"),
        address: ([10, 0, 0, 1], 1000 + number).into(),
    };
    for written in Route::write_many(store, (0..ROUTES).map(route)).await {
        written?;
    }
    say("write", format_args!("{ROUTES} routes"));

    let (routes, cost) = start(store, directory).await?;
    expect("at first everything comes", cost == usize::from(ROUTES))?;
    expect("the first route is there", routes.get("www0.example.com") == Some(route(0).address))?;

    let moved = Route { address: "10.0.0.2:80".parse()?, ..route(0) };
    moved.write_to_anyway(store).await?;
    Route::delete_anyway(store, RouteKey { host: route(1).host }).await?;
    let new = Route { host: "new.example.com".to_owned(), address: "10.0.0.3:80".parse()? };
    new.write_to_anyway(store).await?;
    say("away", "one route moves, one goes, one is new");

    let (routes, cost) = start(store, directory).await?;
    expect("after that what was missed does, and nothing else", cost == 3)?;
    expect("a route has moved", routes.get(&moved.host) == Some(moved.address))?;
    expect("a route is gone", routes.get(&route(1).host).is_none())?;
    expect("a route is new", routes.get(&new.host) == Some(new.address))?;
    expect("the others are as they were", routes.get(&route(999).host) == Some(route(999).address))
}

/// Starts a node and waits until it has caught up. Returns its routes, and the number of updates
/// that this took.
async fn start(store: &Store, directory: &Path) -> Outcome<(Routes, usize)> {
    let storage = LogStorage::open(edge::log(directory), SnapshotOptions::new()).await?;
    let (routes, errors) = Routes::restore(&storage);
    say("start", edge::restored(&routes, &storage));
    if let Some(error) = errors.into_iter().next() {
        return Err(error.into());
    }

    let is_new = routes.len() == 0;
    let stop = CancellationToken::new();
    let mut replica = Replica::new(store, RouteKey::scope()).storage(storage).stop_on(stop.clone());
    let mut cost = None;
    let tell = |event| match event {
        Event::CaughtUp(updates) => {
            say("follow", Event::CaughtUp(updates));
            cost = Some(updates);
            stop.cancel();
        }
        // A thousand lines would say little.
        Event::Set { was: None, .. } if is_new => {}
        event => say("follow", event),
    };
    let cursor = edge::follow(&mut replica, &routes, tell).await?.ok_or("nothing was kept")?;
    say("stop", format_args!("at position {}", cursor.position()));
    Ok((routes, cost.ok_or("it did not catch up")?))
}

/// Checks the claims of the demonstration.
fn expect(what: &str, holds: bool) -> Outcome {
    if holds { Ok(()) } else { Err(format!("not so: {what}").into()) }
}

fn say(what: &str, text: impl fmt::Display) {
    println!("{what:<8}{text}");
}
