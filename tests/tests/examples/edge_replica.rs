//! `edge_replica`: a node that is killed, ended and restarted, while others change routes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shizuku_kv::snapshot::{self, SnapshotError};
use shizuku_kv::{Connection, Store, connect};
use shizuku_kv_tests::{NatsServer, Random, is_long, seed, unique};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::driver::{Example, Process, demonstrate, until};

/// Part of every bad route here. No output may contain it.
const SECRET: &str = "hunter2";

const NEW_LOG: &str = "restored 0 routes, and no position to go on from";

/// A node with a store and a directory of its own.
struct Node {
    example: Example,
    store: String,
    /// Temporary directory of the node.
    scratch: TempDir,
}

impl Node {
    fn new(server: &NatsServer) -> Self {
        let store = unique("edge-replica");
        let example = Example::new("edge_replica", &server.url(), &store);
        Self { example, store, scratch: tempfile::tempdir().unwrap() }
    }

    /// Returns the node's directory, which the node itself creates.
    fn directory(&self) -> PathBuf {
        self.scratch.path().join("edge")
    }

    fn log(&self) -> PathBuf {
        self.directory().join("routes.log")
    }

    fn words<'a>(&self, directory: &'a Path, words: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec![words[0], directory.to_str().unwrap()];
        all.extend(&words[1..]);
        all
    }

    /// Starts the node, and waits until it reports that it has caught up. Returns its output so
    /// far.
    #[track_caller]
    fn start(&self) -> (Process, Vec<String>) {
        let node = self.serve();
        node.until_printed("caught up: the restart cost ");
        let printed = node.printed().lines().map(str::to_owned).collect();
        (node, printed)
    }

    fn serve(&self) -> Process {
        self.example.start(&self.words(&self.directory(), &["serve"]))
    }

    /// Returns its error message if it cannot start.
    #[track_caller]
    fn refused(&self) -> String {
        self.example.run(&self.words(&self.directory(), &["serve"])).refused()
    }

    /// Looks up a host in the log, without the node and without the store.
    #[track_caller]
    fn lookup(&self, host: &str) -> String {
        self.example.run(&self.words(&self.directory(), &["lookup", host])).printed()
    }

    #[track_caller]
    fn list(&self) -> String {
        self.example.run(&self.words(&self.directory(), &["list"])).printed()
    }

    /// Changes the routes as another process, and returns the position of the change in the store.
    #[track_caller]
    fn change(&self, words: &[&str]) -> u64 {
        self.example.run(words).version().parse().unwrap()
    }

    #[track_caller]
    fn set(&self, host: &str, address: &str) -> u64 {
        self.change(&["set", host, address])
    }

    /// Waits until the log has all writes up to a position. The commit is later than the node's
    /// output, because the node prints a change before it is committed.
    #[track_caller]
    fn until_kept(&self, position: u64) {
        until("it is kept", || (self.position()? == position).then_some(()));
    }

    /// Returns the position of the log.
    fn position(&self) -> Option<u64> {
        snapshot::load(self.log()).ok()?.cursor.map(|cursor| cursor.position())
    }
}

fn sorted<'a>(lines: impl IntoIterator<Item = &'a String>) -> Vec<&'a str> {
    let mut lines: Vec<_> = lines.into_iter().map(String::as_str).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_restart_after_a_kill_costs_what_was_missed() {
    let node = Node::new(NatsServer::shared());
    node.set("a.example", "10.0.0.1:80");
    let (running, printed) = node.start();
    assert_eq!(
        printed,
        [NEW_LOG, "a.example: new, 10.0.0.1:80", "caught up: the restart cost 1 update"]
            .map(str::to_owned)
    );
    let mut kept = 0;
    for (number, host) in
        ["b.example", "c.example", "d.example", "e.example"].into_iter().enumerate()
    {
        kept = node.set(host, &format!("10.0.0.{}:80", number + 2));
        running.until_printed(&format!("{host}: new, 10.0.0.{}:80\n", number + 2));
    }
    node.until_kept(kept);
    running.kill();
    // Works without a node and without a store.
    assert_eq!(node.lookup("d.example"), "10.0.0.4:80");

    node.set("b.example", "10.0.1.2:80");
    node.change(&["remove", "a.example"]);
    node.set("f.example", "10.0.0.6:80");
    // Replaced before the node receives it.
    node.set("c.example", "10.0.1.3:80");
    let last = node.set("c.example", "10.0.2.3:80");
    assert_eq!(node.lookup("c.example"), "10.0.0.3:80", "the log is what the node had");

    let (running, printed) = node.start();
    assert_eq!(
        printed,
        [
            &format!("restored 5 routes up to position {kept}"),
            "b.example: 10.0.0.2:80 -> 10.0.1.2:80",
            "a.example: gone, was 10.0.0.1:80",
            "f.example: new, 10.0.0.6:80",
            "c.example: 10.0.0.3:80 -> 10.0.2.3:80",
            "caught up: the restart cost 4 updates",
        ]
        .map(str::to_owned)
    );
    node.until_kept(last);
    assert_eq!(
        node.list(),
        "b.example: 10.0.1.2:80\nc.example: 10.0.2.3:80\nd.example: 10.0.0.4:80\ne.example: 10.0.0.5:80\n\
         f.example: 10.0.0.6:80"
    );
    let gone = node.example.run(&node.words(&node.directory(), &["lookup", "a.example"])).refused();
    assert_eq!(gone, "edge_replica: there is no route for a.example");
    running.kill();

    // Nothing has changed.
    let (_running, printed) = node.start();
    assert_eq!(
        printed,
        [
            &format!("restored 5 routes up to position {last}"),
            "caught up: the restart cost 0 updates"
        ]
        .map(str::to_owned)
    );
}

/// Kills the node at any moment: during the start, the first state, a batch, or a write to the log.
#[tokio::test(flavor = "multi_thread")]
async fn node_killed_repeatedly_ends_with_the_right_routes() {
    let node = Node::new(NatsServer::shared());
    let mut random = Random::from_seed(seed());
    let rounds = if is_long() { 60 } else { 8 };
    let writer = Writer::start(&node, Random::from_seed(random.number())).await;
    let at_last = tokio::task::block_in_place(|| {
        let (mut kept, mut at_last) = (0, None);
        for _ in 0..rounds {
            let running = node.serve();
            writer.until_written(random.below(600));
            running.kill();
            at_last = match snapshot::load(node.log()) {
                Ok(state) => state.cursor.map(|cursor| cursor.position()),
                Err(SnapshotError::NotFound { .. }) => None,
                Err(error) => panic!("{error}"),
            };
            // The log has no position during a resync, which happens if every route was written
            // again while the node was away.
            if let Some(position) = at_last {
                assert!(position >= kept, "{position} after {kept}");
                kept = position;
            }
        }
        at_last
    });
    let (routes, last) = writer.end().await;

    let (running, printed) = node.start();
    let place = at_last
        .map_or(", and no position to go on from".to_owned(), |at| format!(" up to position {at}"));
    assert!(printed[0].ends_with(&place), "{} after a kill at {at_last:?}", printed[0]);
    running.terminate(&format!("stopped at position {last}"));
    assert_eq!(node.list().lines().collect::<Vec<_>>(), lines(&routes));
}

/// Its output shows the applied changes. At SIGTERM they are committed, whatever the node is doing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_to_end_keeps_everything_first() {
    let node = Node::new(NatsServer::shared());
    let mut random = Random::from_seed(seed());
    let rounds = if is_long() { 40 } else { 8 };
    let writer = Writer::start(&node, Random::from_seed(random.number())).await;
    tokio::task::block_in_place(|| {
        let mut told = BTreeMap::new();
        for _ in 0..rounds {
            let (running, _) = node.start();
            writer.until_written(random.below(300));
            let printed = running.terminate_with("stopped at position ");
            let (changes, stopped) = printed.rsplit_once('\n').unwrap();
            for line in changes.lines().filter(|line| line.starts_with("host")) {
                let (host, change) = line.split_once(": ").unwrap();
                match change.strip_prefix("gone") {
                    Some(_) => drop(told.remove(host)),
                    None => drop(
                        told.insert(host.to_owned(), change.rsplit(' ').next().unwrap().to_owned()),
                    ),
                }
            }
            let position = node.position().unwrap();
            assert_eq!(stopped, format!("stopped at position {position}"));
            assert_eq!(
                node.list().lines().collect::<Vec<_>>(),
                lines(&told),
                "at position {position}"
            );
        }
    });
    let (routes, last) = writer.end().await;
    node.start().0.terminate(&format!("stopped at position {last}"));
    assert_eq!(node.list().lines().collect::<Vec<_>>(), lines(&routes));
}

#[test]
fn a_second_node_in_a_directory_is_refused() {
    let node = Node::new(NatsServer::shared());
    node.set("a.example", "10.0.0.1:80");
    let (running, _) = node.start();
    let log = node.log();
    assert_eq!(
        node.refused(),
        format!(
            "edge_replica: snapshot {log:?} is open in another writer, of this process or another; close that first"
        )
    );
    // The failed start did no harm.
    let position = node.set("a.example", "10.0.0.2:80");
    node.until_kept(position);
    running.kill();
    // A lock does not outlive its holder.
    let (_running, printed) = node.start();
    assert_eq!(printed[0], format!("restored 1 route up to position {position}"));
}

#[test]
fn a_damaged_log_is_refused_and_a_node_without_one_begins_anew() {
    let node = Node::new(NatsServer::shared());
    for host in ["a.example", "b.example"] {
        node.set(host, "10.0.0.1:80");
    }
    node.start().0.terminate("stopped at position 2");
    let mut bytes = fs::read(node.log()).unwrap();
    let address = bytes.windows(8).position(|bytes| bytes == b"10.0.0.1").unwrap();
    bytes[address] ^= 1;
    fs::write(node.log(), bytes).unwrap();

    let list = node.example.run(&node.words(&node.directory(), &["list"])).refused();
    for refused in [node.refused(), list] {
        let begins = format!("edge_replica: snapshot {:?} is damaged at byte 64: ", node.log());
        assert!(refused.starts_with(&begins), "{refused}");
        assert!(refused.ends_with("; restore it, or remove it and begin anew"), "{refused}");
    }

    fs::remove_dir_all(node.directory()).unwrap();
    let (running, printed) = node.start();
    assert_eq!((&*printed[0], &*printed[3]), (NEW_LOG, "caught up: the restart cost 2 updates"));
    running.terminate("stopped at position 2");
    assert_eq!(node.list(), "a.example: 10.0.0.1:80\nb.example: 10.0.0.1:80");
}

#[tokio::test(flavor = "multi_thread")]
async fn recreated_bucket_removes_routes_that_it_lacks() {
    let server = NatsServer::shared();
    let node = Node::new(server);
    for host in ["a.example", "b.example", "c.example"] {
        node.set(host, "10.0.0.1:80");
    }
    node.start().0.terminate("stopped at position 3");
    connect(&server.url()).await.unwrap().delete_store(&node.store).await.unwrap();
    // The same address, version and position, but in another bucket.
    node.set("a.example", "10.0.0.1:80");
    node.set("d.example", "10.0.0.4:80");
    node.set("b.example", "10.0.0.2:80");

    let (running, printed) = node.start();
    assert_eq!(
        printed,
        [
            "restored 3 routes up to position 3",
            "d.example: new, 10.0.0.4:80",
            "b.example: 10.0.0.1:80 -> 10.0.0.2:80",
            "c.example: gone while this node could not know, was 10.0.0.1:80",
            "caught up: the restart cost 4 updates",
        ]
        .map(str::to_owned)
    );
    running.terminate("stopped at position 3");
    assert_eq!(
        node.list(),
        "a.example: 10.0.0.1:80\nb.example: 10.0.0.2:80\nd.example: 10.0.0.4:80"
    );
    // The log is a copy of the new bucket now.
    let (_running, printed) = node.start();
    assert_eq!(
        printed,
        ["restored 3 routes up to position 3", "caught up: the restart cost 0 updates"]
            .map(str::to_owned)
    );
}

#[test]
fn a_node_has_its_routes_while_the_server_is_away() {
    let mut server = NatsServer::start();
    let node = Node::new(&server);
    node.set("a.example", "10.0.0.1:80");
    let (running, _) = node.start();
    server.kill();
    running.until_printed("\nthe store is not heard from: ");
    running.kill();

    let running = node.serve();
    running.until_printed("\nwaiting for the store: ");
    assert_eq!(running.first_line(), "restored 1 route up to position 1");
    assert_eq!(node.lookup("a.example"), "10.0.0.1:80");
    server.restart();
    running.until_printed("caught up: the restart cost 0 updates\n");

    server.kill();
    running.until_printed("\nthe store is not heard from: ");
    server.restart();
    running.until_printed("\nthe store is heard from again\n");
    node.set("b.example", "10.0.0.2:80");
    running.until_printed("b.example: new, 10.0.0.2:80\n");
    node.until_kept(2);
    server.kill();
    until("it knows", || (running.printed().matches("not heard from").count() == 2).then_some(()));
    let printed = running.terminate("stopped at position 2");
    assert_eq!(printed.matches("caught up").count(), 1, "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_bucket_was_deleted_ends_and_keeps_what_it_has() {
    let server = NatsServer::shared();
    let node = Node::new(server);
    node.set("a.example", "10.0.0.1:80");
    let (running, _) = node.start();
    let connection = connect(&server.url()).await.unwrap();
    connection.delete_store(&node.store).await.unwrap();
    running.failed();

    // It does not create an empty bucket either, which would remove its routes.
    let running = node.serve();
    running
        .until_printed(&format!("waiting for the store: store {:?} does not exist; ", node.store));
    assert_eq!(running.first_line(), "restored 1 route up to position 1");
    running.terminate("stopped before the store was there");
    assert_eq!(node.lookup("a.example"), "10.0.0.1:80");
    let error = connection.delete_store(&node.store).await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[test]
fn a_bad_route_is_told_and_stops_nothing() {
    let node = Node::new(NatsServer::shared());
    node.set("a", "10.0.0.1:80");
    let (running, _) = node.start();
    let bad = node.change(&["set-raw", "route.a", r#"{"host": "a", "address": "hunter2"}"#]);
    running.until_printed(&format!(
        "refused: Route under key route.a (version {bad}) cannot be decoded: "
    ));
    node.change(&["set-raw", "route.b", r#"{"host": "hunter", "address": "10.0.0.1:80"}"#]);
    running.until_printed(
        "refused: Route cannot be under key route.b: its own key is \"route.hunter\"; use that key",
    );
    let last = node.set("c", "10.0.0.3:80");
    running.until_printed("c: new, 10.0.0.3:80\n");
    node.until_kept(last);
    running.kill();

    // A new process does not know the earlier current values.
    let (running, printed) = node.start();
    assert_eq!(printed[0], format!("restored 1 route up to position {last}"));
    let refused = sorted(&printed[1..3]);
    assert!(refused[1].starts_with("refused: Route under key route.a (version "), "{refused:?}");
    let misplaced = "refused: Route cannot be under key route.b: its own key is \"route.hunter\"; ";
    assert!(refused[0].starts_with(misplaced), "{refused:?}");
    node.set("a", "10.0.0.1:80");
    running.until_printed("a: new, 10.0.0.1:80\n");
    let printed = running.printed();
    assert!(!printed.contains(SECRET), "{printed}");
}

/// Mistakes are reported on stderr, with an exit code, and before any write.
#[test]
fn a_mistake_is_told() {
    let node = Node::new(NatsServer::shared());
    let told = |words: &[&str]| node.example.run(words).refused();
    for words in
        [&["begin"][..], &["serve"], &["set", "a"], &["remove"], &["lookup", "."], &["list"]]
    {
        assert!(told(words).starts_with("edge_replica: usage: "), "{words:?}");
    }
    assert_eq!(told(&["set", "a", "here"]), "edge_replica: an ADDRESS is one such as 10.0.0.1:80");
    let log = node.log();
    let directory = node.directory();
    let missing = told(&["list", directory.to_str().unwrap()]);
    assert_eq!(missing, format!("edge_replica: there is no snapshot {log:?}; a writer creates it"));
    // An invalid URL is not repeated.
    let refused = Example::new("edge_replica", SECRET, "any").run(&["remove", "a"]).refused();
    assert!(refused.contains("no scheme") && !refused.contains(SECRET), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_tells_its_story() {
    let server = NatsServer::start();
    for url in ["memory:", &server.url()] {
        let printed = demonstrate("edge_replica", url).printed();
        let (opened, story) = printed.split_once('\n').unwrap();
        assert!(opened.starts_with("open    store edge-replica-"), "{opened}");
        assert_eq!(story, STORY, "{url}");
    }
    let stores = connect(&server.url()).await.unwrap().list_stores().try_collect().await.unwrap();
    assert!(stores.is_empty(), "{stores:?}");
}

const STORY: &str = "\
write   1000 routes
start   restored 0 routes, and no position to go on from
follow  caught up: the restart cost 1000 updates
stop    at position 1000
away    one route moves, one goes, one is new
start   restored 1000 routes up to position 1000
follow  www0.example.com: 10.0.0.1:1000 -> 10.0.0.2:80
follow  www1.example.com: gone, was 10.0.0.1:1001
follow  new.example.com: new, 10.0.0.3:80
follow  caught up: the restart cost 3 updates
stop    at position 1003
close   the log is removed, and the store deleted";

/// Returns the routes as `list` prints them.
fn lines(routes: &BTreeMap<String, String>) -> Vec<String> {
    routes.iter().map(|(host, address)| format!("{host}: {address}")).collect()
}

/// Sets and removes routes without a pause, until it is stopped.
struct Writer {
    task: JoinHandle<(BTreeMap<String, String>, u64)>,
    writes: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Writer {
    async fn start(node: &Node, random: Random) -> Self {
        let store =
            connect(&NatsServer::shared().url()).await.unwrap().store(&node.store).await.unwrap();
        let (writes, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(write(store, random, Arc::clone(&writes), Arc::clone(&is_over)));
        Self { task, writes, is_over }
    }

    /// Waits for this many more writes.
    #[track_caller]
    fn until_written(&self, more: u64) {
        let then = self.writes.load(Ordering::Relaxed) + more;
        until("more is written", || (self.writes.load(Ordering::Relaxed) >= then).then_some(()));
    }

    /// Stops it. Returns the final routes, and the last position.
    async fn end(self) -> (BTreeMap<String, String>, u64) {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn write(
    store: Store,
    mut random: Random,
    writes: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
) -> (BTreeMap<String, String>, u64) {
    let (mut routes, mut last) = (BTreeMap::new(), None);
    while !is_over.load(Ordering::Relaxed) {
        let host = format!("host{}", random.below(12));
        let key = format!("route.{host}");
        if random.below(4) == 0 {
            last = store.delete(key).await.unwrap().as_u64();
            routes.remove(&host);
        } else {
            let address = format!("10.0.0.1:{}", random.below(60_000));
            let text = format!(r#"{{"host": "{host}", "address": "{address}"}}"#);
            last = store.put(key, text).await.unwrap().as_u64();
            routes.insert(host, address);
        }
        writes.fetch_add(1, Ordering::Relaxed);
    }
    (routes, last.unwrap())
}
