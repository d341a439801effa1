//! The backends that a test runs on, one after the other.

use std::sync::Arc;

use shizuku_kv::{Connection, Store, connect};

use crate::{NatsServer, is_long, unique};

/// The options of a folder in each mode that writes.
const MODES: [&str; 3] = ["", "?shared=true", "?exclusive=true"];

/// Returns the URL of a new folder in each mode that writes: the default, shared and exclusive. The
/// folders are removed after the end of this process.
pub fn folder_urls() -> Vec<String> {
    let home = NatsServer::shared().home().display();
    MODES.iter().map(|mode| format!("file:{home}/{}{mode}", unique("folder"))).collect()
}

/// Returns a URL for each backend: memory, the shared server, and those of [`folder_urls`].
pub fn urls() -> Vec<String> {
    let mut urls = vec!["memory:".to_owned(), NatsServer::shared().url()];
    urls.extend(folder_urls());
    urls
}

/// Returns a store on each backend, with a connection of its own. The first is in memory.
///
/// # Panics
///
/// If a store cannot be opened.
pub async fn stores(prefix: &str) -> Vec<(Arc<dyn Connection>, Store)> {
    let mut stores = Vec::new();
    for url in urls() {
        let connection = connect(&url).await.expect("a connection");
        let store = connection.store(&unique(prefix)).await.expect("a store");
        stores.push((connection, store));
    }
    stores
}

/// Returns this many handles to one store, for each backend. If several connections share stores,
/// on a server and in a shared folder, each handle has a connection of its own. An exclusive folder
/// is part of long runs only, because tests of locks wait for leases.
///
/// # Panics
///
/// If a store cannot be opened.
pub async fn handles(prefix: &str, number: usize) -> Vec<Vec<Store>> {
    let mut handles = Vec::new();
    for url in urls().into_iter().filter(|url| is_long() || !url.contains("exclusive=true")) {
        handles.push(handles_at(&url, &unique(prefix), number).await);
    }
    handles
}

/// Returns this many handles to a store at a URL, as [`handles`] does.
///
/// # Panics
///
/// If a store cannot be opened.
pub async fn handles_at(url: &str, name: &str, number: usize) -> Vec<Store> {
    let can_share = !url.starts_with("memory:") && !url.starts_with("file:");
    let only = match can_share || url.contains("shared=true") {
        true => None,
        false => Some(connect(url).await.expect("a connection")),
    };
    let mut handles = Vec::new();
    for _ in 0..number {
        let connection = match &only {
            Some(only) => Arc::clone(only),
            None => connect(url).await.expect("a connection"),
        };
        handles.push(connection.store(name).await.expect("a store"));
    }
    handles
}
