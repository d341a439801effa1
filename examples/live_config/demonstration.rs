//! The demonstration in one process: HTTP requests to the service while its configuration changes,
//! breaks and is mended.

use std::net::SocketAddr;
use std::time::Duration;
use std::{fmt, process};

use serde_json::Value;
use shizuku_kv::{Connection, KeyValue, StaticKeyIndexedValue, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::{Changes, Outcome, ServiceConfig, service, set};

pub(crate) async fn run(connection: &dyn Connection, scheme: &str) -> Outcome {
    // A unique name, so that concurrent runs do not interfere.
    let name = format!("live-config-{}", process::id());
    let store = connection.store(&name).await?;
    say("open", format_args!("store {name} on {scheme}"));

    let told = async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (end, ended) = oneshot::channel::<()>();
        let ended = async { drop(ended.await) };
        let story = async {
            let told = tell(&store, address).await;
            drop(end);
            told
        };
        tokio::try_join!(service::serve(&store, listener, ended), story)
    }
    .await;

    // Cleans up even if the demonstration ended early.
    let deleted = connection.delete_store(&name).await;
    told?;
    deleted?;
    say("close", "the store is deleted");
    Ok(())
}

async fn tell(store: &Store, service: SocketAddr) -> Outcome {
    say("ask", get(service, "/config").await?);

    let features = ["beta", "dark"].map(str::to_owned);
    let changes = Changes { pool_size: Some(8), features: Some(features.into()) };
    let good = set(store, &changes).await?.to_string();
    say("set", format_args!("8 places, and the features beta and dark: version {good}"));
    say("ask", until(service, "/config", |config| config["pool"]["size"] == 8).await?);
    say(
        "ask",
        format_args!("the feature beta is {}", get(service, "/feature/beta").await?.trim_end()),
    );

    // Other programs do not know the type and its rule. The last good value stays current.
    for bad in [r#"{"pool_size": "many"}"#, r#"{"pool_size": 0}"#] {
        let version = store.put(ServiceConfig::key(), bad).await?.to_string();
        say("break", format_args!("{bad}: version {version}"));
        let is_seen =
            |status: &Value| status["status"]["version"] == *version && status["in_force"] == *good;
        say("ask", until(service, "/status", is_seen).await?);
    }
    say("ask", get(service, "/config").await?);

    let config = ServiceConfig { pool_size: 6, ..ServiceConfig::default() };
    let version = config.write_to_anyway(store).await?;
    say("mend", format_args!("{config}: version {version}"));
    say("ask", until(service, "/config", |config| config["pool"]["size"] == 6).await?);
    say("ask", until(service, "/status", |status| status["status"]["state"] == "current").await?);

    say("delete", format_args!("version {}", ServiceConfig::delete(store).await?));
    say("ask", until(service, "/status", |status| status["status"]["state"] == "absent").await?);
    say("ask", get(service, "/config").await?);
    Ok(())
}

/// Returns the answer when it is as expected, because a write arrives soon, but not at once.
async fn until(
    service: SocketAddr,
    path: &str,
    is_there: impl Fn(&Value) -> bool,
) -> Outcome<String> {
    let answered = async {
        loop {
            let answer = get(service, path).await?;
            if is_there(&serde_json::from_str(&answer)?) {
                return Ok(answer);
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), answered)
        .await
        .map_err(|_| format!("{path} has not changed"))?
}

async fn get(service: SocketAddr, path: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(service).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {service}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("the answer has no body")?;
    Ok(body.to_owned())
}

fn say(what: &str, text: impl fmt::Display) {
    println!("{what:<8}{text}");
}
