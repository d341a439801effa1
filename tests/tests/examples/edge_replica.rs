//! `edge_replica`: a node that is killed, ended and restarted, while others change routes.

use std::path::{Path, PathBuf};

use shizuku_kv::{Connection, connect, snapshot};
use shizuku_kv_tests::{NatsServer, unique};
use tempfile::TempDir;

use crate::driver::{Example, Process, SECRET, assert_story, until};

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
fn restart_after_a_kill_costs_the_missed_updates() {
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
fn node_has_its_routes_during_an_outage() {
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
async fn deleted_bucket_ends_the_node_and_keeps_its_routes() {
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
fn bad_route_is_reported_and_others_still_come() {
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

/// Each mistake is reported before any write.
#[test]
fn mistakes_are_reported() {
    let node = Node::new(NatsServer::shared());
    let (log, directory) = (node.log(), node.directory());
    let missing = format!("there is no snapshot {log:?}; a writer creates it");
    node.example.assert_mistakes(
        &[&["begin"], &["serve"], &["set", "a"], &["remove"], &["lookup", "."], &["list"]],
        &[
            (&["set", "a", "here"], "an ADDRESS is one such as 10.0.0.1:80"),
            (&["list", directory.to_str().unwrap()], &missing),
        ],
        &["remove", "a"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn demonstration_prints_each_step() {
    assert_story("edge_replica", STORY).await;
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
