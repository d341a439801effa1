//! One run: faults for a while, then a quiet time, then all checks.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shizuku_kv::WatchScope;
use shizuku_kv_tests::{Faults, NatsCluster, NatsServer, Random};

use crate::faults::bucket;
use crate::faults::check::{self, Bucket, Violation};
use crate::faults::cursors;
use crate::faults::history::{History, Kind, Outcome, Write};
use crate::faults::log::{Content, Event, Log};
use crate::faults::summary::{Injected, Slowest, Summary};
use crate::faults::watchers::sight;
use crate::faults::world::{ANCHOR, Phase, Settings, World};
use crate::faults::writers::DEADLINE;

/// Timeout for watches to receive everything, after a fault or in the end. A half-dead connection
/// is noticed after 20 seconds, a lost consumer after 11, and a retry may be 10 seconds away.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Maximum time by which a write may exceed its deadline, on a busy machine.
const OVERRUN: Duration = Duration::from_secs(4);

/// Maximum number of violations of a run that are reported in full.
const TOLD: usize = 12;

/// Maximum number of a watch's last deliveries and a key's last writes that a violation includes.
const CONTEXT: usize = 16;

const POLL: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) length: Duration,
}

/// Runs the plan.
pub(crate) async fn run(plan: Plan) -> Summary {
    let mut faults =
        Faults::new(plan.seed).lasting(Duration::from_millis(50)..=Duration::from_secs(2));
    let cluster = match plan.nodes {
        1 => NatsCluster::of(NatsServer::start()).await,
        nodes => NatsCluster::builder().nodes(nodes).start().await,
    };
    let version = cluster.client().await.server_info().version;
    let kind = if plan.nodes == 1 { "a single server" } else { "a cluster" };
    let mut summary = Summary { seed: faults.seed(), version, ..Summary::default() };
    summary.runs.insert(kind, 1);

    let mut random = Random::new(faults.seed(), "run");
    let start = Instant::now();
    let main = Settings {
        replicas: plan.nodes,
        history: if random.once_in(2) { 1 } else { 3 },
        leases: false,
    };
    let leases = Settings { replicas: plan.nodes, history: 1, leases: true };
    let mut worlds = Vec::new();
    for (bucket, settings) in [("main", main), ("leases", leases)] {
        let mut world = World::new(&cluster.url(), bucket, settings, faults.seed(), start).await;
        world.start_watches(plan.length * 2 / 3).await;
        world.start_writers();
        worlds.push(world);
    }
    let mut run = Run { cluster, worlds, start, summary, violations: Vec::new() };
    run.inject(&mut faults, &mut random, plan.length).await;
    run.summary.faults = faults.counts().clone();
    run.end(&mut random).await;
    run.summary
}

struct Run {
    cluster: NatsCluster,
    worlds: Vec<World>,
    start: Instant,
    summary: Summary,
    violations: Vec<Violation>,
}

impl Run {
    async fn inject(&mut self, faults: &mut Faults, random: &mut Random, length: Duration) {
        let end = self.start.elapsed() + length;
        while self.start.elapsed() < end {
            let injection = faults.next(&self.cluster);
            let bucket = if random.once_in(2) { "main" } else { "leases" };
            let (began, what) = (self.start.elapsed(), format!("{injection}, {bucket}"));
            self.summary.injected.push(Injected {
                began,
                ended: Duration::MAX,
                what: what.clone(),
            });
            faults.inject(&injection, &self.cluster, bucket).await;
            let ended = self.start.elapsed();
            self.summary.injected.last_mut().expect("it was just put there").ended = ended;
            // Otherwise the next fault comes while this one still has effects.
            if random.once_in(2) {
                self.converge(ended, what).await;
            }
        }
    }

    /// Waits until every group of keys has been written since then and all watches have received
    /// that, and records the duration.
    async fn converge(&mut self, since: Duration, after: String) {
        let worlds = &self.worlds;
        let written = || worlds.iter().all(|world| world.ledger.all_groups_written_since(since));
        if !until(written).await {
            self.wrong(format!("not every key can be written {PATIENCE:?} after {after}"));
            return;
        }
        let writing = self.start.elapsed() - since;
        let newest: Vec<_> = worlds.iter().map(|world| world.ledger.newest()).collect();
        let behind = || {
            worlds
                .iter()
                .zip(&newest)
                .flat_map(|(world, newest)| world.behind(newest))
                .collect::<Vec<_>>()
        };
        if !until(|| behind().is_empty()).await {
            let behind = behind().join("\n    ");
            self.wrong(format!(
                "not everything has arrived {PATIENCE:?} after {after}; behind are\n    {behind}"
            ));
            return;
        }
        let whole = self.start.elapsed() - since;
        if whole > self.summary.slowest.whole {
            self.summary.slowest = Slowest { whole, writing, after };
        }
    }

    fn wrong(&mut self, what: String) {
        let at = self.start.elapsed();
        self.violations.push(Violation::general(format!("at {at:.3?} {what}")));
    }

    /// Ends the faults, and makes all checks.
    async fn end(&mut self, random: &mut Random) {
        let quiet = self.start.elapsed();
        for world in &mut self.worlds {
            world.enter(Phase::Quiet);
            let writers = std::mem::take(&mut world.writers);
            let ended = tokio::time::timeout(PATIENCE, writers.join_all()).await;
            assert!(ended.is_ok(), "writers hang");
        }
        self.cluster.wait_until_ready().await;
        for world in &self.worlds {
            self.cluster.wait_until_healthy(&world.bucket).await;
        }
        self.settle().await;
        self.summary.settling = self.start.elapsed() - quiet;
        for world in &self.worlds {
            let consumers = self.cluster.consumers(&world.bucket).await;
            self.summary.remade += remade(&consumers);
        }
        // All watches continue, and any surplus update has arrived by now.
        for world in &self.worlds {
            world.write_last().await;
        }
        self.settle().await;
        for number in 0..self.worlds.len() {
            self.check(number, random).await;
        }
    }

    /// Waits until every value with a time to live has expired, and every watch agrees with the
    /// bucket.
    async fn settle(&mut self) {
        let mut unsettled = Vec::new();
        for world in &self.worlds {
            let history = world.ledger.history();
            let deadline = Instant::now() + PATIENCE;
            let bucket = loop {
                let (bucket, _) = bucket::read(&self.cluster, &world.bucket, &history).await;
                let lives = leased(&history, &bucket);
                if lives.is_empty() || Instant::now() > deadline {
                    unsettled.extend(lives.into_iter().map(|key| format!("{key} does not expire")));
                    break bucket;
                }
                tokio::time::sleep(POLL).await;
            };
            let is_settled = || {
                world
                    .logs
                    .iter()
                    .all(|log| check::settled(&history, &bucket, &log.lock().unwrap()).is_empty())
            };
            if !until(is_settled).await {
                for log in &world.logs {
                    let log = log.lock().unwrap();
                    for Violation { key, what, .. } in check::settled(&history, &bucket, &log) {
                        unsettled.push(format!("{} has not settled: {key:?}: {what}", log.name));
                    }
                }
            }
        }
        unsettled.into_iter().for_each(|what| self.wrong(what));
    }

    async fn check(&mut self, number: usize, random: &mut Random) {
        let world = &mut self.worlds[number];
        world.enter(Phase::Over);
        std::mem::take(&mut world.readers).join_all().await;
        let logs: Vec<Log> = world.logs.iter().map(|log| log.lock().unwrap().clone()).collect();
        let history = world.ledger.history();
        let (bucket, first_sequence) = bucket::read(&self.cluster, &world.bucket, &history).await;
        let mut found = check::all(&history, &bucket, &logs);
        found.extend(slow_writes(&history));
        let oddities = world.ledger.oddities().into_iter();
        found.extend(oddities.map(Violation::general));

        let store = world.store().await;
        found.extend(listed(&store, &bucket).await);
        // While the first message exists, no cursor expires.
        let (went_on, wrong) =
            cursors::resume(&store, &logs, &history, &bucket, first_sequence, 2, random, |it| it)
                .await;
        found.extend(wrong);
        world.writer("compacting").put_for_sure(ANCHOR).await;
        self.cluster.wait_until_healthy(&world.bucket).await;
        let (bucket, first_sequence) = bucket::read(&self.cluster, &world.bucket, &history).await;
        let (later, wrong) =
            cursors::resume(&store, &logs, &history, &bucket, first_sequence, 2, random, |it| it)
                .await;
        found.extend(wrong);

        let summary = &mut self.summary;
        summary.acknowledged +=
            history.count(|outcome| matches!(outcome, Outcome::Acknowledged(_)));
        summary.refused += history.count(|outcome| outcome == Outcome::Refused);
        summary.unknown += history.count(|outcome| outcome == Outcome::Unknown);
        summary.watches += logs.len() as u64;
        summary.events += logs.iter().map(Log::entries).sum::<u64>();
        for resumed in [went_on, later] {
            summary.resumed.continued += resumed.continued;
            summary.resumed.expired += resumed.expired;
        }
        // The run itself found those without a bucket.
        let earlier = std::mem::take(&mut self.violations);
        let left_out = found.len().saturating_sub(TOLD);
        for violation in earlier.iter().chain(found.iter().take(TOLD)) {
            summary.violations.push(told(&world.bucket, violation, &logs, &history));
        }
        if left_out > 0 {
            summary.violations.push(format!("{}: and {left_out} more", world.bucket));
        }
    }
}

/// Waits for a condition, up to the timeout.
async fn until(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

/// Returns the number of recreated consumers. Each watch counts its own in their names:
/// `shizuku-ID-COUNT`.
fn remade(consumers: &[String]) -> u64 {
    let mut most: HashMap<&str, u64> = HashMap::new();
    for name in consumers {
        let Some((watch, count)) = name.rsplit_once('-').filter(|(watch, _)| watch.contains('-'))
        else {
            continue;
        };
        let count: u64 = count.parse().expect("a count");
        let known = most.entry(watch).or_default();
        *known = count.max(*known);
    }
    most.values().sum()
}

/// Returns the keys with a time to live that still exist.
fn leased(history: &History, bucket: &Bucket) -> Vec<String> {
    let lives = |content| match content {
        Content::Value(number) => history.writes[number].kind == Kind::Lease,
        _ => false,
    };
    bucket
        .values()
        .filter(|newest| lives(newest.content))
        .map(|newest| newest.key.to_string())
        .collect()
}

/// Checks that no write hangs.
fn slow_writes(history: &History) -> Vec<Violation> {
    // A batch of writes has twice the deadline.
    let limit = 2 * DEADLINE + OVERRUN;
    let slow =
        history.writes.iter().filter(|write| write.ended.saturating_sub(write.began) > limit);
    let told = slow.map(|write| {
        Violation::of_key(&write.key, format!("a write took longer than {limit:?}: {write:?}"))
    });
    told.collect()
}

/// Checks that a new listing equals the bucket.
async fn listed(store: &shizuku_kv::Store, bucket: &Bucket) -> Vec<Violation> {
    let entries = match store.scan(WatchScope::All).try_collect().await {
        Ok(entries) => entries,
        Err(error) => {
            return vec![Violation::general(format!("the bucket cannot be listed: {error}"))];
        }
    };
    let listed: Result<Vec<_>, _> = entries.iter().map(sight).collect();
    let mut listed = listed.expect("values of this run");
    listed.sort_by(|one, other| one.key.cmp(&other.key));
    let lives: Vec<_> =
        bucket.values().filter(|newest| newest.content.is_value()).cloned().collect();
    if listed == lives {
        Vec::new()
    } else {
        vec![Violation::general(format!("a listing gives {listed:?}, there is {lives:?}"))]
    }
}

/// Formats a violation with its context.
pub(crate) fn told(bucket: &str, violation: &Violation, logs: &[Log], history: &History) -> String {
    let Violation { watch, key, at, what } = violation;
    let time = at.map_or_else(String::new, |at| format!("at {at:.3?} "));
    let mut text =
        format!("{bucket}: {}{}{time}{what}", named(watch.as_deref()), named(key.as_deref()));
    let Some(key) = key else { return text };
    // Shows entries up to a little after it, or the last ones.
    let end = at.map_or(Duration::MAX, |at| at + Duration::from_millis(50));
    let of_key = |event: &Event| match event {
        Event::Sight(sight) => sight.key == *key,
        Event::Gone(gone) => gone == key,
        _ => true,
    };
    if let Some(log) = logs.iter().find(|log| Some(&log.name) == watch.as_ref()) {
        let deliveries =
            log.events.iter().filter(|(at, event)| *at <= end && of_key(event)).collect::<Vec<_>>();
        text += "\n  the last deliveries:";
        for (at, event) in &deliveries[deliveries.len().saturating_sub(CONTEXT)..] {
            text += &format!("\n    {at:>9.3?} {event:?}");
        }
    }
    let writes = history.of(key).filter(|(_, write)| write.began <= end).collect::<Vec<_>>();
    text += "\n  the last writes:";
    for (number, write) in &writes[writes.len().saturating_sub(CONTEXT)..] {
        let Write { kind, began, ended, outcome, .. } = write;
        text +=
            &format!("\n    {began:>9.3?} to {ended:>9.3?} write {number}: {kind:?} {outcome:?}");
    }
    text
}

fn named(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("{name}: "))
}
