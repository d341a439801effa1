//! A cluster of `nats-server` processes for one test, with proxies at all connections that can be
//! cut.

use std::fmt::Write;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream;
use serde_json::Value;

use crate::config::ClusterMember;
use crate::{NatsServer, NatsServerBuilder, TcpProxy, api, monitor, unique};

/// Timeout for a cluster. An election takes four to nine seconds, and can fail.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time for new servers to form a cluster. Afterwards others are started in their place, with twice
/// the time.
///
/// It takes them half a second, but there are two ways to fail. A server that stands for election
/// before it reaches the others stands again only after seconds. In 2.10, the first leader may be
/// elected before it has heard of every server. It then considers the cluster a smaller one, and
/// never accepts the last server.
const FOUNDING: Duration = Duration::from_millis(1500);

/// Timeout for one request to a cluster, because without a leader it has no answer.
const ANSWER: Duration = Duration::from_millis(500);

const POLL: Duration = Duration::from_millis(20);

/// Describes a [`NatsCluster`] before it starts.
#[derive(Debug, Clone)]
#[must_use = "nothing starts before `start`"]
pub struct NatsClusterBuilder {
    nodes: usize,
    options: NatsServerBuilder,
}

impl NatsClusterBuilder {
    /// Sets the number of servers, 3 by default.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Appends text to the configuration file of each server, as [`NatsServerBuilder::config`]
    /// does.
    pub fn config(mut self, text: &str) -> Self {
        self.options = self.options.config(text);
        self
    }

    /// Starts the servers and returns when they [are ready](NatsCluster::wait_until_ready).
    ///
    /// # Panics
    ///
    /// As [`NatsServerBuilder::start`] and [`NatsCluster::wait_until_ready`] do, and if fewer than
    /// three servers are requested: for one server there is [`NatsCluster::of`].
    pub async fn start(self) -> NatsCluster {
        assert!(
            self.nodes > 2,
            "a cluster has three nodes or more; `NatsCluster::of` takes one server"
        );
        let mut limit = FOUNDING;
        loop {
            let cluster = self.found().await.patience(limit);
            if limit >= PATIENCE || cluster.attempt(|| cluster.ready()).await.is_ok() {
                let cluster = cluster.patience(PATIENCE);
                cluster.wait_until_ready().await;
                return cluster;
            }
            limit *= 2;
        }
    }

    async fn found(&self) -> NatsCluster {
        let name = unique("cluster");
        let nowhere = TcpProxy::unaimed().await;
        nowhere.refuse(true);
        let mut silent = Vec::new();
        for _ in 0..self.nodes {
            silent.push(TcpProxy::unaimed().await);
        }
        let mut routes = Vec::new();
        for from in 0..self.nodes {
            for to in 0..self.nodes {
                if begins(self.nodes, from, to) {
                    routes.push(Route { from, to, proxy: TcpProxy::unaimed().await });
                }
            }
        }
        let members = (0..self.nodes).map(|index| {
            let from_here =
                routes.iter().filter(|route| route.from == index).map(|route| &route.proxy);
            ClusterMember {
                cluster: name.clone(),
                server: format!("{name}-{index}"),
                // A server takes the number of routes for the size of the cluster that it helps to
                // found.
                routes: from_here.chain(&silent).take(self.nodes).map(TcpProxy::port).collect(),
                advertised: nowhere.port(),
            }
        });
        // Starts all servers at the same time, because the first tries to be elected after a tenth
        // of a second. If it cannot reach the others by then, the next try is seconds later.
        let starting: Vec<_> = members
            .map(|member| {
                let options = self.options.clone().cluster(member.clone());
                tokio::task::spawn_blocking(move || (member.server, options.start()))
            })
            .collect();
        let mut nodes = Vec::new();
        for (index, starting) in starting.into_iter().enumerate() {
            let (name, server) =
                starting.await.unwrap_or_else(|failed| resume_unwind(failed.into_panic()));
            for route in routes.iter().filter(|route| route.to == index) {
                route.proxy.aim(server.ports().routes);
            }
            nodes.push(ClusterNode::new(name, server).await);
        }
        NatsCluster { nodes, routes, patience: PATIENCE, _silent: silent, _nowhere: nowhere }
    }
}

/// The proxy between two servers, and which of them connects to the other.
#[derive(Debug)]
struct Route {
    from: usize,
    to: usize,
    proxy: TcpProxy,
}

/// Returns true if one node of a cluster connects to another. For any two nodes exactly one
/// connects to the other. Each node connects to at least one, because it has no clustered JetStream
/// otherwise. If both connect, they close each other's connections for a second.
fn begins(nodes: usize, from: usize, to: usize) -> bool {
    let ahead = (nodes + to - from) % nodes;
    ahead != 0 && (2 * ahead < nodes || (2 * ahead == nodes && from < to))
}

/// Real `nats-server` processes on loopback ports that form a cluster, each with JetStream and its
/// storage in a temporary directory.
///
/// Clients are behind a [`TcpProxy`] for each node, and so is each server for each other: this is
/// how a node can be [cut off](Self::partition). No server announces the ports behind the proxies.
///
/// The processes are killed and their files are removed when this is dropped, and also when the
/// test process ends in any other way. The proxies live in the runtime that started them.
///
/// Methods that break the cluster take `&self` too, so that a test can use it meanwhile.
#[derive(Debug)]
pub struct NatsCluster {
    // Nodes are dropped first, so that later messages about their routes do not matter.
    nodes: Vec<ClusterNode>,
    routes: Vec<Route>,
    patience: Duration,
    /// For the routes that a server must have in its configuration and must not begin.
    _silent: Vec<TcpProxy>,
    /// The address that servers announce to each other. Connections to it are closed at once.
    _nowhere: TcpProxy,
}

impl NatsCluster {
    /// Starts three servers.
    ///
    /// # Panics
    ///
    /// As [`NatsClusterBuilder::start`] does.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Starts with a description of the servers.
    pub fn builder() -> NatsClusterBuilder {
        NatsClusterBuilder { nodes: 3, options: NatsServer::builder() }
    }

    /// Returns one server behind a proxy, as a cluster of one. All operations of a cluster that
    /// make sense for one server work with it.
    pub async fn of(server: NatsServer) -> Self {
        let node = ClusterNode::new(unique("server"), server).await;
        Self {
            nodes: vec![node],
            routes: Vec::new(),
            patience: PATIENCE,
            _silent: Vec::new(),
            _nowhere: TcpProxy::unaimed().await,
        }
    }

    /// Sets the timeout of all later waits, instead of 60 seconds.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Returns the URL for clients, with all hosts:
    /// `nats://127.0.0.1:PORT,127.0.0.1:PORT,127.0.0.1:PORT`. The ports are those of the proxies.
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.proxy.port())).collect();
        format!("nats://{}", hosts.join(","))
    }

    /// Returns all nodes.
    pub fn nodes(&self) -> &[ClusterNode] {
        &self.nodes
    }

    /// Returns one node, counted from 0.
    ///
    /// # Panics
    ///
    /// If no node has this number.
    pub fn node(&self, index: usize) -> &ClusterNode {
        &self.nodes[index]
    }

    /// Returns a plain client of the reachable nodes, around the proxies, for observations from
    /// outside the library.
    ///
    /// # Panics
    ///
    /// If it cannot connect to any.
    pub async fn client(&self) -> Client {
        let urls: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| node.is_reachable())
            .map(ClusterNode::direct_url)
            .collect();
        assert!(!urls.is_empty(), "no node can be reached: {}", self.state());
        async_nats::connect(&urls[..]).await.expect("connect to the test's cluster")
    }

    /// Waits until buckets with replicas can be created. Every reachable node then has JetStream in
    /// order and agrees on the leader of the cluster, and the leader has all nodes as up-to-date
    /// followers.
    ///
    /// # Panics
    ///
    /// If that takes more than 60 seconds. The message has the last state, and the end of the logs.
    pub async fn wait_until_ready(&self) {
        self.until("the cluster is not ready", || self.ready()).await;
        for node in self.nodes.iter().filter(|node| node.is_reachable()) {
            let context = jetstream::new(node.client().await);
            self.until(&format!("JetStream does not answer on {}", node.name), || async {
                context.query_account().await.map(drop).map_err(|error| error.to_string())
            })
            .await;
        }
    }

    async fn ready(&self) -> Result<(), String> {
        let mut leader: Option<String> = None;
        let mut followers = 0;
        for node in self.nodes.iter().filter(|node| node.is_reachable()) {
            if self.nodes.len() == 1 {
                return node.healthy().await;
            }
            let page = node.page("/jsz").await?;
            let meta = page.get("meta_cluster").ok_or("no meta group yet")?;
            let named = meta["leader"].as_str().unwrap_or_default();
            if named.is_empty() {
                return Err(format!("{} knows no leader", node.name));
            }
            if leader.get_or_insert_with(|| named.to_owned()) != named {
                return Err(format!("{} and others know different leaders", node.name));
            }
            let size = &meta["cluster_size"];
            if *size != self.nodes.len() {
                return Err(format!("{} takes it for a cluster of {size}", node.name));
            }
            if named == node.name {
                let replicas = meta["replicas"].as_array().into_iter().flatten();
                followers = replicas.filter(|replica| replica["current"] == true).count();
            }
        }
        if followers + 1 < self.nodes.iter().filter(|node| node.is_reachable()).count() {
            return Err(format!("{leader:?} leads with {followers} followers that are up to date"));
        }
        // This comes last, because each failure is a line in the server's log.
        for node in self.nodes.iter().filter(|node| node.is_reachable()) {
            node.healthy().await?;
        }
        Ok(())
    }

    /// Returns the node that leads the stream of a bucket, as soon as one does. Requests bypass
    /// [partitions](Self::partition), so the result is never an old leader behind one.
    ///
    /// # Panics
    ///
    /// If no leader exists within 60 seconds, or the bucket does not exist.
    pub async fn leader_of(&self, bucket: &str) -> usize {
        let client = self.client().await;
        self.until(&format!("the bucket {bucket} has no leader"), || async {
            Ok(self.replicas(&client, bucket).await?.leader)
        })
        .await
    }

    /// Returns the node that leads the cluster's JetStream and places its consumers, as soon as one
    /// does.
    ///
    /// # Panics
    ///
    /// If no such leader exists within 60 seconds.
    pub async fn meta_leader(&self) -> usize {
        self.until("JetStream has no leader", || async {
            let node = self
                .nodes
                .iter()
                .find(|node| node.is_reachable())
                .ok_or("no node can be reached")?;
            let page = node.page("/jsz").await?;
            let meta = page.get("meta_cluster").ok_or("no meta group yet")?;
            self.index_of(meta["leader"].as_str().unwrap_or_default())
        })
        .await
    }

    /// Makes the leader of a bucket's stream step down, and returns when it has. Usually another
    /// node is elected then.
    ///
    /// # Panics
    ///
    /// If that fails for 60 seconds, for example because the stream has no replicas.
    pub async fn step_down(&self, bucket: &str) {
        let client = self.client().await;
        self.until(&format!("the leader of the bucket {bucket} does not step down"), || async {
            let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.KV_{bucket}");
            api::request(&client, subject, String::new()).await
        })
        .await;
    }

    /// Waits until the stream of a bucket has a leader and all its replicas. Each replica's server
    /// then runs, and has everything that the leader has when it is asked.
    ///
    /// # Panics
    ///
    /// If that takes more than 60 seconds. The message has the last state, and the end of the logs.
    pub async fn wait_until_healthy(&self, bucket: &str) {
        let client = self.client().await;
        self.until(&format!("the bucket {bucket} is not healthy"), || {
            self.bucket_healthy(&client, bucket)
        })
        .await;
    }

    async fn bucket_healthy(&self, client: &Client, bucket: &str) -> Result<(), String> {
        let replicas = self.replicas(client, bucket).await?;
        if replicas.followers.len() + 1 < replicas.wanted {
            return Err(format!(
                "it has {} of {} replicas",
                replicas.followers.len() + 1,
                replicas.wanted
            ));
        }
        let position = self.nodes[replicas.leader].last_sequence(bucket).await?;
        for (follower, current) in replicas.followers {
            // Asks each follower too, because a leader may not have noticed yet that one has
            // failed.
            let node = &self.nodes[follower];
            if !current || !node.is_reachable() {
                return Err(format!("{} {} and is not current", node.name, node.condition()));
            }
            let reached = node.last_sequence(bucket).await?;
            if reached < position {
                return Err(format!("{} is at {reached}, the leader at {position}", node.name));
            }
            node.healthy().await?;
        }
        Ok(())
    }

    /// Returns the state of a bucket's replicas, as the leader of its stream reports it.
    async fn replicas(&self, client: &Client, bucket: &str) -> Result<Replicas, String> {
        let mut context = jetstream::new(client.clone());
        context.set_timeout(ANSWER);
        let stream =
            context.get_stream(format!("KV_{bucket}")).await.map_err(|error| error.to_string())?;
        let info = stream.cached_info();
        let Some(cluster) = info.cluster.as_ref().filter(|_| self.nodes.len() > 1) else {
            return Ok(Replicas { wanted: 1, leader: 0, followers: Vec::new() });
        };
        let leader = self.index_of(cluster.leader.as_deref().unwrap_or_default())?;
        let mut followers = Vec::new();
        for peer in &cluster.replicas {
            followers.push((self.index_of(&peer.name)?, peer.current && !peer.offline));
        }
        Ok(Replicas { wanted: info.config.num_replicas, leader, followers })
    }

    /// Cuts a node off from the other nodes and from clients, as a network does that loses every
    /// packet: connections stay open and are silent. The harness's own requests bypass it.
    pub fn partition(&self, index: usize) {
        self.nodes[index].cut_off.store(true, Ordering::SeqCst);
        self.nodes[index].proxy.stall();
        self.routes_of(index).for_each(TcpProxy::stall);
    }

    /// Ends all [partitions](Self::partition).
    pub fn heal(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.cut_off.swap(false, Ordering::SeqCst) {
                node.proxy.flow();
                self.routes_of(index).for_each(TcpProxy::flow);
            }
        }
    }

    /// Returns the proxies between a node and the others.
    pub fn routes_of(&self, index: usize) -> impl Iterator<Item = &TcpProxy> {
        self.routes
            .iter()
            .filter(move |route| route.from == index || route.to == index)
            .map(|route| &route.proxy)
    }

    /// Returns the names of the consumers that the cluster has for a bucket.
    ///
    /// # Panics
    ///
    /// If the bucket does not exist, or no node answers within 60 seconds.
    pub async fn consumers(&self, bucket: &str) -> Vec<String> {
        let client = self.client().await;
        self.until(&format!("the consumers of the bucket {bucket} cannot be told"), || {
            api::consumers(&client, bucket)
        })
        .await
    }

    /// Deletes every consumer that the cluster has for a bucket, and returns their number.
    ///
    /// # Panics
    ///
    /// As [`consumers`](Self::consumers) does.
    pub async fn delete_consumers(&self, bucket: &str) -> usize {
        let client = self.client().await;
        let names = self.consumers(bucket).await;
        for name in &names {
            self.until(&format!("the consumer {name} cannot be deleted"), || {
                api::delete_consumer(&client, bucket, name)
            })
            .await;
        }
        names.len()
    }

    /// Returns the number of clients that are connected to the reachable nodes, this harness's own
    /// included.
    pub async fn connections(&self) -> usize {
        let mut sum = 0;
        for node in self.nodes.iter().filter(|node| node.is_reachable()) {
            sum += node.connections().await;
        }
        sum
    }

    fn index_of(&self, name: &str) -> Result<usize, String> {
        let found = self.nodes.iter().position(|node| node.name == name);
        found.ok_or_else(|| format!("no node is called {name:?}"))
    }

    /// Repeats a request until an answer arrives. Panics with the last reason if none arrives in
    /// time.
    async fn until<T, F>(&self, what: &str, ask: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T, String>>,
    {
        let answer = self.attempt(ask).await;
        answer.unwrap_or_else(|why| {
            panic!("{what} within {:?}: {why}. {}", self.patience, self.state())
        })
    }

    /// Repeats a request until an answer arrives. Returns the last reason if none arrives in time.
    async fn attempt<T, F>(&self, ask: impl Fn() -> F) -> Result<T, String>
    where
        // Not an `AsyncFn`, because the compiler cannot tell yet that its futures are `Send`.
        F: Future<Output = Result<T, String>>,
    {
        let deadline = Instant::now() + self.patience;
        loop {
            let answer = ask().await;
            if answer.is_ok() || Instant::now() >= deadline {
                return answer;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Describes the state of each node, for a message.
    fn state(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let log = node.log();
            let lines: Vec<_> = log.lines().collect();
            let _ = write!(text, "\n{} {}. The end of its log:", node.name, node.condition());
            lines[lines.len().saturating_sub(15)..].iter().for_each(|line| {
                let _ = write!(text, "\n    {line}");
            });
        }
        text
    }
}

/// The replicas of a bucket's stream, by the numbers of their nodes.
struct Replicas {
    /// Configured number of replicas.
    wanted: usize,
    leader: usize,
    /// The followers, and whether the leader considers each up to date.
    followers: Vec<(usize, bool)>,
}

/// A server of a [`NatsCluster`], and the proxy through which clients reach it.
#[derive(Debug)]
pub struct ClusterNode {
    name: String,
    server: Mutex<NatsServer>,
    proxy: TcpProxy,
    cut_off: AtomicBool,
}

impl ClusterNode {
    async fn new(name: String, server: NatsServer) -> Self {
        let proxy = TcpProxy::start(server.port()).await;
        Self { name, server: Mutex::new(server), proxy, cut_off: AtomicBool::new(false) }
    }

    /// Returns the server's name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the URL for clients, which is that of the [proxy](Self::proxy).
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// Returns the URL of the server itself, around the proxy and so around partitions.
    pub fn direct_url(&self) -> String {
        self.server().url()
    }

    /// Returns the proxy between clients and this server.
    pub fn proxy(&self) -> &TcpProxy {
        &self.proxy
    }

    /// Returns the process id of the server, or of the last one while it is killed.
    pub fn pid(&self) -> u32 {
        self.server().pid()
    }

    /// Returns the logs of all server processes of this node.
    pub fn log(&self) -> String {
        self.server().log()
    }

    /// Returns true if the server's version is `major.minor` or newer.
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        self.server().is_at_least(major, minor)
    }

    /// Returns a plain client of this server, around the proxy.
    ///
    /// # Panics
    ///
    /// If it cannot connect.
    pub async fn client(&self) -> Client {
        async_nats::connect(self.direct_url()).await.expect("connect to the test's server")
    }

    /// Returns the number of clients that are connected to this server, this harness's own
    /// included.
    ///
    /// # Panics
    ///
    /// As [`NatsServer::connections`] does.
    pub async fn connections(&self) -> usize {
        let port = self.server().ports().monitoring;
        monitor::connections(port).await
    }

    /// Kills the server with SIGKILL and returns when it is gone. Its files stay.
    pub fn kill(&self) {
        self.server().kill();
    }

    /// Kills the server if it runs, and starts it again on the same ports and storage. It may
    /// rejoin its cluster only later: see [`NatsCluster::wait_until_healthy`].
    ///
    /// # Panics
    ///
    /// As [`NatsServerBuilder::start`] does.
    pub fn restart(&self) {
        self.server().restart();
    }

    /// Stops the process with SIGSTOP, as [`NatsServer::pause`] does.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn pause(&self) {
        self.server().pause();
    }

    /// Resumes a [paused](Self::pause) server.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn resume(&self) {
        self.server().resume();
    }

    /// Returns true if the server runs, is not paused and not in a
    /// [partition](NatsCluster::partition).
    pub fn is_reachable(&self) -> bool {
        self.condition() == "runs"
    }

    fn condition(&self) -> &'static str {
        let mut server = self.server();
        if !server.is_running() {
            "does not run"
        } else if server.is_paused() {
            "is paused"
        } else if self.cut_off.load(Ordering::SeqCst) {
            "is cut off"
        } else {
            "runs"
        }
    }

    fn server(&self) -> MutexGuard<'_, NatsServer> {
        // A failed start has panicked, but the value is still valid.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a page of the monitoring port, such as `/varz`.
    ///
    /// # Errors
    ///
    /// If the server does not answer.
    pub async fn page(&self, path: &str) -> Result<Value, String> {
        let port = self.server().ports().monitoring;
        monitor::page(port, path).await.ok_or_else(|| format!("{} does not answer", self.name))
    }

    async fn healthy(&self) -> Result<(), String> {
        let page = self.page("/healthz").await?;
        if page["status"] == "ok" { Ok(()) } else { Err(format!("{} says {page}", self.name)) }
    }

    /// Returns the position of this server in the stream of a bucket.
    async fn last_sequence(&self, bucket: &str) -> Result<u64, String> {
        let page = self.page("/jsz?streams=true").await?;
        let accounts = page["account_details"].as_array().into_iter().flatten();
        accounts
            .flat_map(|account| account["stream_detail"].as_array().into_iter().flatten())
            .find(|stream| stream["name"] == format!("KV_{bucket}"))
            .and_then(|stream| stream["state"]["last_seq"].as_u64())
            .ok_or_else(|| format!("{} has no replica of the bucket {bucket}", self.name))
    }
}
