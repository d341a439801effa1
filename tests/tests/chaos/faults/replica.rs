//! A replica under faults. A process keeps a copy of a bucket in a log, and is killed and restarted
//! repeatedly, while others write and servers and networks fail. After each kill the log is
//! compared with the journal of its `apply`; in the end it is compared with the bucket.

mod child;
mod journal;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use shizuku_kv::snapshot::{self, Snapshot};
use shizuku_kv_tests::{Faults, NatsCluster, NatsServer, Random};

use self::child::Process;
use self::journal::{Copy, Journal};
use crate::faults::bucket;
use crate::faults::run::PATIENCE;
use crate::faults::world::{Phase, Settings, World};

const POLL: Duration = Duration::from_millis(10);

/// Maximum lifetime of the process in milliseconds.
const LIFE: u64 = 1500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_killed_repeatedly_survives_server_faults() {
    run(NatsCluster::of(NatsServer::start()).await, 3, Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: scripts/test --long"]
async fn replica_killed_repeatedly_survives_cluster_faults() {
    if NatsServer::shared().is_at_least(2, 11) {
        run(NatsCluster::builder().nodes(3).start().await, 4, Duration::from_secs(60)).await;
    }
}

/// The observed events.
#[derive(Debug, Default)]
struct Tally {
    starts: u64,
    compactions: u64,
    resyncs: u64,
    updates: usize,
}

async fn run(cluster: NatsCluster, seed: u64, length: Duration) {
    let mut faults = Faults::new(seed).lasting(Duration::from_millis(50)..=Duration::from_secs(1));
    let mut random = Random::new(faults.seed(), "replica");
    println!("SHIZUKU_SEED={} makes the same decisions", faults.seed());
    let start = Instant::now();
    let settings = Settings { replicas: cluster.nodes().len(), history: 1, leases: true };
    let mut world = World::new(&cluster.url(), "main", settings, faults.seed(), start).await;
    world.start_writers();
    let home = tempfile::tempdir().expect("a directory");
    let mut held = Copy::default();
    let mut journal = Journal::open(home.path());
    let mut tally = Tally::default();

    while start.elapsed() < length || (tally.resyncs == 0 && start.elapsed() < 4 * length) {
        if random.once_in(6) {
            compact(&cluster, &world, held.cursor).await;
            tally.compactions += 1;
        }
        let process = Process::start(&cluster.url(), &world.bucket, home.path(), random.number());
        tally.starts += 1;
        let life = tokio::time::sleep(Duration::from_millis(random.below(LIFE)));
        if random.once_in(3) {
            let injection = faults.next(&cluster);
            let inject = faults.inject(&injection, &cluster, &world.bucket);
            tokio::join!(life, inject);
        } else {
            life.await;
        }
        process.crash();
        held = after_a_kill(home.path(), &mut journal, held, &mut tally);
    }

    world.enter(Phase::Quiet);
    std::mem::take(&mut world.writers).join_all().await;
    cluster.wait_until_ready().await;
    cluster.wait_until_healthy(&world.bucket).await;
    world.write_last().await;
    let process = Process::start(&cluster.url(), &world.bucket, home.path(), random.number());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (there, _) = bucket::read(&cluster, &world.bucket, &world.ledger.history()).await;
        let there: BTreeMap<String, u64> = there
            .values()
            .filter(|newest| newest.content.is_value())
            .map(|newest| (newest.key.to_string(), newest.version))
            .collect();
        let copy = load(home.path());
        if copy.entries == there {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the replica is not what the bucket is: {copy:?}\nthe bucket: {there:?}"
        );
        tokio::time::sleep(POLL).await;
    }
    process.crash();
    after_a_kill(home.path(), &mut journal, held, &mut tally);
    println!("{tally:?}, faults: {:?}", faults.counts());
    assert!(tally.resyncs > 0, "it never had to resync: {tally:?}");
    assert!(tally.resyncs <= tally.compactions, "it resynced without a reason: {tally:?}");
    assert!(tally.starts >= 10 && tally.updates > 100, "too little has happened: {tally:?}");
}

/// Waits until many updates follow the replica's position, and removes all but the last of them. No
/// update will report these values as vanished.
async fn compact(cluster: &NatsCluster, world: &World, held: Option<u64>) {
    let beyond = held.unwrap_or_default() + 20;
    let deadline = Instant::now() + PATIENCE;
    while world.ledger.newest().values().all(|version| *version < beyond) {
        // For example because the disk of the server is full.
        assert!(Instant::now() < deadline, "the writers cannot write");
        tokio::time::sleep(POLL).await;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let context = jetstream::new(cluster.client().await);
        if let Ok(stream) = context.get_stream(format!("KV_{}", world.bucket)).await
            && stream.purge().keep(5).await.is_ok()
        {
            return;
        }
        assert!(Instant::now() < deadline, "the stream cannot be purged");
    }
}

/// Compares the content of the log with the journal of `apply` since the process was started.
fn after_a_kill(home: &Path, journal: &mut Journal, before: Copy, tally: &mut Tally) -> Copy {
    let run = journal.read_on();
    let found = load(home);
    tally.resyncs += u64::from(run.resynced);
    tally.updates += run.updates();
    if let Err(why) = run.explains(&before, &found) {
        panic!("{why}\nbefore: {before:?}\nfound: {found:?}\nthe run: {run:#?}");
    }
    found
}

fn load(home: &Path) -> Copy {
    let path = home.join(child::LOG);
    if !path.exists() {
        return Copy::default();
    }
    let Snapshot { entries, cursor, .. } = snapshot::load(&path).expect("the log can be read");
    let entry = |entry: snapshot::SnapshotEntry<'_>| {
        (entry.key().to_owned(), entry.version().as_u64().expect("a number"))
    };
    Copy {
        entries: entries.iter().map(entry).collect(),
        cursor: cursor.map(|cursor| cursor.position()),
    }
}
