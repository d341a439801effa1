//! Random faults that a seed reproduces.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::{NatsCluster, Random, number};

/// A fault of a [`NatsCluster`]. Unless its description says otherwise, a fault lasts for a while
/// and is then undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The server is killed with SIGKILL, and started again with the same storage.
    Kill,
    /// The process is stopped with SIGSTOP, with its connections open, and then resumed.
    Pause,
    /// Every packet between clients and the server is lost; the content arrives later.
    Stall,
    /// Clients' connections are closed, new ones too, until the fault ends.
    Cut,
    /// Every byte between clients and the server takes a tenth of the fault's length longer, in
    /// each direction.
    Delay,
    /// The server's messages to its clients are held back, and lost when their connections are
    /// closed at the end.
    LoseAnswers,
    /// The server reads the end of its clients' connections; done at once.
    EndRequests,
    /// The clients read the end of their connections; done at once.
    EndAnswers,
    /// The leader of the bucket's stream steps down; done at once.
    StepDown,
    /// A server is silently cut off from the others and from clients.
    Partition,
    /// All consumers of the bucket are deleted on the server; done at once.
    DeleteConsumers,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::Pause,
        Self::Stall,
        Self::Cut,
        Self::Delay,
        Self::LoseAnswers,
        Self::EndRequests,
        Self::EndAnswers,
        Self::StepDown,
        Self::Partition,
        Self::DeleteConsumers,
    ];

    /// Returns true if the fault makes sense only with several servers.
    fn needs_others(self) -> bool {
        matches!(self, Self::StepDown | Self::Partition)
    }
}

/// The target of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The node of this number.
    Node(usize),
    /// The node that leads the bucket's stream when the fault begins.
    Leader,
}

/// A fault, its target and its length. [`Faults::next`] or the test itself decides them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injection {
    /// The fault.
    pub fault: Fault,
    /// Its target.
    pub victim: Victim,
    /// Its length.
    pub length: Duration,
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, victim, length } = self;
        match victim {
            Victim::Node(node) => write!(f, "{fault:?} on node {node} for {length:?}"),
            Victim::Leader => write!(f, "{fault:?} on the leader for {length:?}"),
        }
    }
}

/// A source of random faults: the same seed makes the same decisions, on any machine.
///
/// Its `Display` is a summary of the injected faults: `seed 7: 3 faults (1 Cut, 2 Kill)`.
#[derive(Debug)]
pub struct Faults {
    seed: u64,
    random: Random,
    kinds: Vec<Fault>,
    lengths: RangeInclusive<Duration>,
    counts: BTreeMap<Fault, u64>,
}

impl Faults {
    /// Starts with this seed, or with the one in `SHIZUKU_SEED` if that is set, and prints
    /// `seed N`, which reproduces a failure. All faults are drawn, with lengths between 0.1 and 3
    /// seconds.
    ///
    /// # Panics
    ///
    /// If `SHIZUKU_SEED` is not a number.
    pub fn new(seed: u64) -> Self {
        let seed = number("SHIZUKU_SEED").unwrap_or(seed);
        println!("seed {seed}");
        Self {
            seed,
            random: Random::from_seed(seed),
            kinds: Fault::ALL.to_vec(),
            lengths: Duration::from_millis(100)..=Duration::from_secs(3),
            counts: BTreeMap::new(),
        }
    }

    /// Draws only from these. A repeated fault is drawn more often.
    #[must_use]
    pub fn only(mut self, kinds: &[Fault]) -> Self {
        self.kinds = kinds.to_vec();
        self
    }

    /// Draws lengths from this range, in milliseconds.
    #[must_use]
    pub fn lasting(mut self, lengths: RangeInclusive<Duration>) -> Self {
        self.lengths = lengths;
        self
    }

    /// Returns the seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Decides the next fault, from nothing but the seed, the earlier decisions and the number of
    /// nodes. Half of the faults that can happen to any node happen to the leader.
    ///
    /// # Panics
    ///
    /// If none of the faults can happen to this cluster. A single server cannot be cut off from
    /// others, and has no leader.
    pub fn next(&mut self, cluster: &NatsCluster) -> Injection {
        let nodes = cluster.nodes().len();
        let possible: Vec<_> =
            self.kinds.iter().copied().filter(|fault| nodes > 1 || !fault.needs_others()).collect();
        assert!(!possible.is_empty(), "none of {:?} can happen to a single server", self.kinds);
        let fault = possible[self.random.index(possible.len())];
        // Draws both in any case, so that later decisions do not depend on it.
        let (leader, node) = (self.random.below(2) == 0, self.random.index(nodes));
        let victim = if nodes > 1 && leader { Victim::Leader } else { Victim::Node(node) };
        let (from, to) = (self.lengths.start().as_millis(), self.lengths.end().as_millis());
        let spread = usize::try_from(to.saturating_sub(from)).expect("a length in milliseconds");
        let length = *self.lengths.start()
            + Duration::from_millis(
                self.random.below(u64::try_from(spread + 1).expect("a small number")),
            );
        Injection { fault, victim, length }
    }

    /// Injects a fault into a cluster and its bucket, waits for its length, undoes it and counts
    /// it. The cluster may take longer to recover: [`NatsCluster::wait_until_healthy`] waits for
    /// that.
    ///
    /// Dropping the future undoes the fault too.
    ///
    /// # Panics
    ///
    /// As [`NatsCluster::leader_of`] does if the target is the leader, and as the fault's own
    /// methods do.
    pub async fn inject(&mut self, injection: &Injection, cluster: &NatsCluster, bucket: &str) {
        let Injection { fault, victim, length } = *injection;
        *self.counts.entry(fault).or_default() += 1;
        let index = match victim {
            Victim::Node(index) => index,
            Victim::Leader => cluster.leader_of(bucket).await,
        };
        let node = cluster.node(index);
        let undo = Undo { fault, index, cluster };
        match fault {
            Fault::Kill => node.kill(),
            Fault::Pause => node.pause(),
            Fault::Stall => node.proxy().stall(),
            Fault::Cut => {
                node.proxy().refuse(true);
                node.proxy().cut();
            }
            Fault::Delay => node.proxy().delay(length / 10),
            Fault::LoseAnswers => node.proxy().hold_answers(true),
            Fault::Partition => cluster.partition(index),
            Fault::EndRequests => return node.proxy().half_close_requests(),
            Fault::EndAnswers => return node.proxy().half_close_answers(),
            Fault::StepDown => return cluster.step_down(bucket).await,
            Fault::DeleteConsumers => {
                cluster.delete_consumers(bucket).await;
                return;
            }
        }
        tokio::time::sleep(length).await;
        drop(undo);
    }

    /// Returns the number of injected faults of each kind.
    pub fn counts(&self) -> &BTreeMap<Fault, u64> {
        &self.counts
    }

    /// Returns the number of injected faults.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<_> =
            self.counts.iter().map(|(fault, count)| format!("{count} {fault:?}")).collect();
        write!(f, "seed {}: {} faults ({})", self.seed, self.total(), counts.join(", "))
    }
}

/// Undoes a fault when it is dropped, possibly early because of a test's end or a timeout.
struct Undo<'a> {
    fault: Fault,
    index: usize,
    cluster: &'a NatsCluster,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The cluster ends too, and a second panic would end the process.
            return;
        }
        let node = self.cluster.node(self.index);
        match self.fault {
            Fault::Kill => node.restart(),
            Fault::Pause => node.resume(),
            Fault::Stall => node.proxy().flow(),
            Fault::Cut => node.proxy().refuse(false),
            Fault::Delay => node.proxy().delay(Duration::ZERO),
            Fault::LoseAnswers => node.proxy().cut(),
            Fault::Partition => self.cluster.heal(),
            Fault::EndRequests | Fault::EndAnswers | Fault::StepDown | Fault::DeleteConsumers => {}
        }
    }
}
