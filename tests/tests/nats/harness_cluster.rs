//! Tests of the harness's clusters, proxies and faults, on real servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer, kv};
use shizuku_kv_tests::{
    Fault, Faults, Injection, NatsCluster, NatsServer, TcpProxy, Victim, eventually, rerun, unique,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Time in which a forbidden arrival would come, far longer than a permitted one needs.
const SILENCE: Duration = Duration::from_millis(300);

/// Returns a bucket with a replica on each node, created and used through this client.
async fn bucket(cluster: &NatsCluster, client: async_nats::Client) -> kv::Store {
    let config = kv::Config {
        bucket: "b".into(),
        num_replicas: cluster.nodes().len(),
        ..Default::default()
    };
    // The first leader may not know every node's storage yet. Repeating the creation is no error.
    let context = jetstream::new(client.clone());
    eventually("the bucket is made", async || {
        context.create_key_value(config.clone()).await.is_ok()
    })
    .await;
    cluster.wait_until_healthy("b").await;
    impatient(client).await
}

/// Returns the bucket as a client of one node sees it. If replicas may answer, that node does.
async fn bucket_at(cluster: &NatsCluster, node: usize) -> kv::Store {
    impatient(cluster.node(node).client().await).await
}

/// Returns the bucket, with little time for each request, because a lost request must be repeated.
async fn impatient(client: async_nats::Client) -> kv::Store {
    let mut context = jetstream::new(client);
    context.set_timeout(SILENCE);
    let mut bucket = None;
    eventually("the bucket is found", async || {
        bucket = context.get_key_value("b").await.ok();
        bucket.is_some()
    })
    .await;
    bucket.unwrap()
}

async fn value(bucket: &kv::Store, key: &str) -> Option<String> {
    let value = bucket.get(key).await.ok().flatten()?;
    Some(String::from_utf8(value.to_vec()).unwrap())
}

/// Returns true if the server at the other end of this client's connection answers before long.
async fn answers(client: &async_nats::Client) -> bool {
    let asked = client.request("$JS.API.INFO", "".into());
    tokio::time::timeout(SILENCE, asked).await.is_ok_and(|answer| answer.is_ok())
}

/// Waits until a node has a value that was written while it was away.
async fn has_caught_up(cluster: &NatsCluster, node: usize, wanted: &str) {
    let bucket = bucket_at(cluster, node).await;
    eventually("it has what it missed", async || {
        value(&bucket, "key").await.as_deref() == Some(wanted)
    })
    .await;
}

/// Writes until a write succeeds, because a write without a leader is lost.
async fn put(bucket: &kv::Store, key: &str, value: &'static str) {
    eventually("a write succeeds", async || bucket.put(key, value.into()).await.is_ok()).await;
}

/// Checks that every route between servers goes through a proxy: no log names another server's own
/// port.
fn assert_no_way_around(cluster: &NatsCluster) {
    let logs: Vec<_> = cluster.nodes().iter().map(|node| node.log()).collect();
    let mut ports = 0;
    for line in logs.iter().flat_map(|log| log.lines()) {
        let Some((_, address)) = line.split_once("Listening for route connections on ") else {
            continue;
        };
        ports += 1;
        let around = format!(" {address} - rid:");
        assert!(
            !logs.iter().any(|log| log.contains(&around)),
            "a route to {address} itself:\n{}",
            logs[0]
        );
    }
    assert!(ports >= cluster.nodes().len());
}

#[tokio::test]
async fn write_through_one_node_is_read_from_another() {
    let cluster = NatsCluster::start().await;
    assert_eq!(cluster.url().split(',').count(), 3);
    assert!(cluster.node(1).name().ends_with("-1"));
    let client = async_nats::connect(cluster.node(0).url()).await.unwrap();
    assert_eq!(client.server_info().server_name, cluster.node(0).name());
    assert_eq!(client.server_info().connect_urls, [""; 0]);
    let through_one = bucket(&cluster, client).await;
    through_one.put("key", "value".into()).await.unwrap();
    for node in 0..3 {
        let from_another = bucket_at(&cluster, node).await;
        eventually("every node has it", async || {
            value(&from_another, "key").await.as_deref() == Some("value")
        })
        .await;
    }
    assert!(cluster.connections().await >= 1);
    assert_no_way_around(&cluster);
}

#[tokio::test]
async fn another_node_takes_over_from_a_killed_leader() {
    let cluster = NatsCluster::start().await;
    let bucket = bucket(&cluster, cluster.client().await).await;
    bucket.put("key", "before".into()).await.unwrap();
    let old = cluster.leader_of("b").await;
    let (pid, port) = (cluster.node(old).pid(), cluster.node(old).direct_url());

    cluster.node(old).kill();
    assert!(!cluster.node(old).is_reachable());
    let new = cluster.leader_of("b").await;
    assert_ne!(new, old);
    let survivor = bucket_at(&cluster, new).await;
    assert_eq!(value(&survivor, "key").await.as_deref(), Some("before"));
    put(&survivor, "key", "after").await;

    cluster.node(old).restart();
    assert_ne!(cluster.node(old).pid(), pid);
    assert_eq!(cluster.node(old).direct_url(), port);
    cluster.wait_until_ready().await;
    cluster.wait_until_healthy("b").await;
    has_caught_up(&cluster, old, "after").await;
    assert_no_way_around(&cluster);
}

#[tokio::test]
async fn paused_node_is_silent_and_catches_up() {
    let cluster = NatsCluster::start().await;
    bucket(&cluster, cluster.client().await).await;
    let leader = cluster.leader_of("b").await;
    let (bucket, follower) = (bucket_at(&cluster, leader).await, (leader + 1) % 3);
    let client = async_nats::connect(cluster.node(follower).url()).await.unwrap();

    cluster.node(follower).pause();
    assert!(!cluster.node(follower).is_reachable());
    assert!(!answers(&client).await);
    put(&bucket, "key", "value").await;
    cluster.node(follower).resume();

    cluster.wait_until_healthy("b").await;
    eventually("clients are answered again", async || answers(&client).await).await;
    has_caught_up(&cluster, follower, "value").await;
}

#[tokio::test]
async fn partitioned_leader_is_replaced_and_catches_up_later() {
    let cluster = NatsCluster::start().await;
    bucket(&cluster, cluster.client().await).await;
    let old = cluster.leader_of("b").await;
    let client = async_nats::connect(cluster.node(old).url()).await.unwrap();

    cluster.partition(old);
    assert!(!cluster.node(old).is_reachable());
    assert!(!answers(&client).await);
    let new = cluster.leader_of("b").await;
    assert_ne!(new, old);
    let majority = bucket_at(&cluster, new).await;
    put(&majority, "key", "value").await;
    // The harness has a way around, and the node really is alone.
    let lonely = cluster.node(old).client().await;
    let direct = lonely.request("$JS.API.DIRECT.GET.KV_b.$KV.b.key", "".into());
    let answer = tokio::time::timeout(SILENCE, direct).await;
    assert!(!answer.is_ok_and(|answer| answer.is_ok_and(|found| found.payload == "value")));

    cluster.heal();
    cluster.wait_until_healthy("b").await;
    eventually("clients are answered again", async || answers(&client).await).await;
    has_caught_up(&cluster, old, "value").await;
    assert_no_way_around(&cluster);
}

#[tokio::test]
async fn leader_steps_down_for_another() {
    let cluster = NatsCluster::start().await;
    let bucket = bucket(&cluster, cluster.client().await).await;
    let old = cluster.leader_of("b").await;
    cluster.step_down("b").await;
    eventually("another leads", async || cluster.leader_of("b").await != old).await;
    cluster.wait_until_healthy("b").await;
    put(&bucket, "key", "value").await;
}

#[tokio::test]
async fn cluster_ends_with_a_test_that_panics() {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let test = tokio::spawn(async move {
        let cluster = NatsCluster::start().await;
        for node in cluster.nodes() {
            sender.send(node.pid()).unwrap();
        }
        cluster.node(1).pause();
        panic!("as a test does");
    });
    assert!(test.await.unwrap_err().is_panic());
    let mut pids = Vec::new();
    while let Some(pid) = receiver.recv().await {
        pids.push(pid);
    }
    assert_eq!(pids.len(), 3);
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is still there");
    }
}

#[tokio::test]
async fn failed_wait_names_what_was_there() {
    let cluster = NatsCluster::of(NatsServer::start()).await.patience(Duration::from_secs(1));
    let wait = tokio::spawn(async move { cluster.wait_until_healthy("missing").await });
    let panic = wait.await.unwrap_err().into_panic();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("the bucket missing is not healthy within 1s"), "{message}");
    assert!(message.contains("stream not found"), "{message}");
    assert!(message.contains(" runs. The end of its log"), "{message}");
}

#[tokio::test]
async fn consumers_and_connections_are_counted() {
    let mut server = NatsServer::start();
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    context
        .create_key_value(kv::Config { bucket: "b".into(), ..Default::default() })
        .await
        .unwrap();
    assert_eq!(server.consumers("b").await, [""; 0]);
    let stream = context.get_stream("KV_b").await.unwrap();
    for name in ["one", "two"] {
        let config =
            consumer::pull::Config { durable_name: Some(name.into()), ..Default::default() };
        stream.create_consumer(config).await.unwrap();
    }
    let mut names = server.consumers("b").await;
    names.sort();
    assert_eq!(names, ["one", "two"]);
    eventually("this client is the only one", async || server.connections().await == 1).await;
    let _other = server.client().await;
    eventually("there is another", async || server.connections().await == 2).await;

    server.restart();
    eventually("both come back", async || server.connections().await == 2).await;
    let cluster = NatsCluster::of(server).await;
    assert_eq!(cluster.delete_consumers("b").await, 2);
    assert_eq!(cluster.consumers("b").await, [""; 0]);
}

/// Returns a proxy, and both ends of a connection through it.
async fn through_a_proxy() -> (TcpProxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = TcpProxy::start(listener.local_addr().unwrap().port()).await;
    let client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (proxy, client, server)
}

async fn reads(stream: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(SILENCE, stream.read(&mut [0])).await.is_err()
}

#[tokio::test]
async fn stalled_proxy_is_silent_and_loses_nothing() {
    let (proxy, mut client, mut server) = through_a_proxy().await;
    proxy.stall();
    client.write_all(b"request").await.unwrap();
    server.write_all(b"answer").await.unwrap();
    assert!(is_silent(&mut client).await && is_silent(&mut server).await);
    proxy.flow();
    reads(&mut client, "answer").await;
    reads(&mut server, "request").await;

    proxy.stall();
    server.write_all(b"last").await.unwrap();
    drop(server);
    let mut late = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    eventually("a stalled proxy accepts", async || proxy.connections() == 2).await;
    assert!(is_silent(&mut client).await && is_silent(&mut late).await);
    proxy.flow();
    reads(&mut client, "last").await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn cut_loses_stalled_bytes() {
    let (proxy, mut client, mut server) = through_a_proxy().await;
    proxy.stall();
    client.write_all(b"lost").await.unwrap();
    proxy.cut();
    assert_eq!(server.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    let mut late = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    assert!(is_silent(&mut late).await);
}

/// Bytes that neither the proxy nor the system accepts stay with the sender.
#[tokio::test]
async fn stalled_proxy_keeps_little() {
    const BLOCK: usize = 64 * 1024;
    let (proxy, mut client, mut server) = through_a_proxy().await;
    proxy.stall();
    let mut taken = 0;
    while let Ok(written) = tokio::time::timeout(SILENCE, client.write(&[7; BLOCK])).await {
        taken += written.unwrap();
        // The proxy's own 256 KiB, and the buffers of four sockets, which the system makes a few
        // megabytes large.
        assert!(taken < 64 * 1024 * 1024, "it takes whatever it gets");
    }
    proxy.flow();
    drop(client);
    let mut arrived = Vec::new();
    server.read_to_end(&mut arrived).await.unwrap();
    assert_eq!(arrived.len(), taken);
}

#[tokio::test]
async fn each_direction_is_delayed_by_itself() {
    const DELAY: Duration = Duration::from_millis(200);
    let (proxy, mut client, mut server) = through_a_proxy().await;
    for requests in [true, false] {
        proxy.delay_requests(if requests { DELAY } else { Duration::ZERO });
        proxy.delay_answers(if requests { Duration::ZERO } else { DELAY });
        // A loaded machine may delay the other direction as much, but not each time.
        for attempt in 1.. {
            let sent = Instant::now();
            client.write_all(b"request").await.unwrap();
            server.write_all(b"answer").await.unwrap();
            let arrival = async |stream: &mut TcpStream, text: &str| {
                reads(stream, text).await;
                sent.elapsed()
            };
            let (request, answer) =
                tokio::join!(arrival(&mut server, "request"), arrival(&mut client, "answer"));
            let (late, early) = if requests { (request, answer) } else { (answer, request) };
            assert!(late >= DELAY && attempt < 20, "{request:?}, {answer:?}");
            if early < DELAY {
                break;
            }
        }
    }
    // Bytes in transit stay in order, and do not wait for earlier ones to arrive.
    proxy.delay(DELAY);
    let sent = Instant::now();
    for number in 0..20 {
        client.write_all(format!("{number:02}").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for number in 0..20 {
        reads(&mut server, &format!("{number:02}")).await;
    }
    let took = sent.elapsed();
    assert!((DELAY..20 * DELAY).contains(&took), "{took:?}");
}

#[tokio::test]
async fn half_of_a_connection_ends() {
    let (proxy, mut client, mut server) = through_a_proxy().await;
    proxy.half_close_requests();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    client.write_all(b"lost").await.unwrap();
    server.write_all(b"answer").await.unwrap();
    reads(&mut client, "answer").await;
    drop(client);
    eventually("the end of the client ends the rest", async || proxy.connections() == 0).await;

    let (proxy, mut client, mut server) = through_a_proxy().await;
    proxy.half_close_answers();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    client.write_all(b"request").await.unwrap();
    reads(&mut server, "request").await;
    drop(server);
    eventually("the end of the server ends the rest", async || proxy.connections() == 0).await;
}

/// Set for a test of this file that runs again, in a process of its own.
const CHILD: &str = "SHIZUKU_HARNESS_CHILD";

/// Returns the faults of a child of this process, with this seed in its environment.
fn decisions(seed: Option<&str>) -> Vec<String> {
    let mut command = rerun(module_path!(), "same_seed_makes_the_same_faults");
    command.env(CHILD, "1").env_remove("SHIZUKU_SEED");
    if let Some(seed) = seed {
        command.env("SHIZUKU_SEED", seed);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text.lines()
        .filter(|line| line.starts_with("seed ") || line.contains(" on "))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn same_seed_makes_the_same_faults() {
    if std::env::var_os(CHILD).is_some() {
        let cluster = NatsCluster::of(NatsServer::start()).await;
        println!();
        let mut faults = Faults::new(1);
        for _ in 0..50 {
            println!("{}", faults.next(&cluster));
        }
        return;
    }
    let first = decisions(None);
    assert_eq!(first.len(), 51, "{first:?}");
    assert_eq!(first[0], "seed 1");
    assert_eq!(first, decisions(None));
    assert_eq!(first, decisions(Some("1")));
    let other = decisions(Some("2"));
    assert_eq!(other[0], "seed 2");
    assert_ne!(first[1..], other[1..]);
}

#[tokio::test]
async fn every_fault_of_a_server_is_undone() {
    let cluster = NatsCluster::of(NatsServer::start()).await;
    let bucket = bucket(&cluster, async_nats::connect(cluster.url()).await.unwrap()).await;
    let length = Duration::from_millis(100);
    let mut faults = Faults::new(1);
    for fault in Fault::ALL {
        if matches!(fault, Fault::StepDown | Fault::Partition) {
            continue;
        }
        let injection = Injection { fault, victim: Victim::Node(0), length };
        faults.inject(&injection, &cluster, "b").await;
        put(&bucket, "key", "value").await;
    }
    assert_eq!(faults.total(), 9);
    assert!(faults.counts().values().all(|&count| count == 1), "{faults}");
    let summary = faults.to_string();
    assert!(summary.contains("9 faults (1 Kill, 1 Pause, "), "{summary}");
}

#[tokio::test]
async fn dropped_fault_is_undone() {
    let cluster = NatsCluster::of(NatsServer::start()).await;
    let bucket = bucket(&cluster, async_nats::connect(cluster.url()).await.unwrap()).await;
    let mut faults = Faults::new(1);
    for fault in [Fault::Kill, Fault::Pause, Fault::Stall, Fault::Cut, Fault::LoseAnswers] {
        let injection =
            Injection { fault, victim: Victim::Node(0), length: Duration::from_secs(60) };
        let injecting = faults.inject(&injection, &cluster, "b");
        assert!(tokio::time::timeout(Duration::from_millis(20), injecting).await.is_err());
        put(&bucket, "key", "value").await;
    }
}

#[tokio::test]
async fn cluster_outlives_its_faults() {
    let cluster = NatsCluster::start().await;
    let hosts: Vec<_> = cluster.nodes().iter().map(|node| node.url()).collect();
    let bucket = bucket(&cluster, async_nats::connect(&hosts[..]).await.unwrap()).await;
    let lengths = Duration::from_millis(50)..=Duration::from_millis(200);
    let mut faults = Faults::new(7).lasting(lengths.clone());
    let mut drawn = Vec::new();
    for _ in 0..200 {
        drawn.push(faults.next(&cluster));
    }
    assert!(Fault::ALL.iter().all(|fault| drawn.iter().any(|injection| injection.fault == *fault)));
    assert!(drawn.iter().all(|injection| lengths.contains(&injection.length)));
    assert!(drawn.iter().any(|injection| injection.victim == Victim::Leader));
    assert!(
        (0..3).all(|node| drawn.iter().any(|injection| injection.victim == Victim::Node(node)))
    );

    // Leaves out the end of a leader, because other tests already wait for its seconds.
    let mut faults =
        faults.only(&[Fault::Partition, Fault::StepDown, Fault::Pause, Fault::DeleteConsumers]);
    let follower = Victim::Node((cluster.leader_of("b").await + 1) % 3);
    let kill = Injection { fault: Fault::Kill, victim: follower, length: *lengths.end() };
    let injections = [kill, faults.next(&cluster), faults.next(&cluster), faults.next(&cluster)];
    let mut written = Vec::new();
    for injection in &injections {
        let key = unique("key");
        tokio::join!(faults.inject(injection, &cluster, "b"), put(&bucket, &key, "value"));
        written.push(key);
        cluster.wait_until_healthy("b").await;
    }
    for key in &written {
        assert_eq!(value(&bucket, key).await.as_deref(), Some("value"));
    }
    println!("{faults}");
    assert_eq!(faults.total(), 4);
    assert_no_way_around(&cluster);
}
