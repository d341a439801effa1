//! Random faults which can be had again.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::NatsCluster;

/// What can happen to a [`NatsCluster`]. All but those that say otherwise last for a while, and are undone then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The server is killed with SIGKILL, and started again with the same storage.
    Kill,
    /// The process is stopped with SIGSTOP, with its connections open, and goes on.
    Pause,
    /// Between clients and the server every packet is lost; what was sent meanwhile arrives later.
    Stall,
    /// Clients' connections are closed, new ones too, until they are let through again.
    Cut,
    /// Between clients and the server every byte takes a tenth of the fault's length longer, in each direction.
    Delay,
    /// What the server sends to its clients is kept back, and lost when their connections are closed at the end.
    LoseAnswers,
    /// In the clients' connections the server reads the end; done at once.
    EndRequests,
    /// In their connections the clients read the end; done at once.
    EndAnswers,
    /// The leader of the bucket's stream steps down; done at once.
    StepDown,
    /// A server is cut off from the others and from clients, in silence.
    Partition,
    /// All consumers of the bucket are deleted on the server; done at once.
    DeleteConsumers,
}

impl Fault {
    /// Every fault there is.
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

    /// Whether it only makes sense where there are several servers.
    fn needs_others(self) -> bool {
        matches!(self, Self::StepDown | Self::Partition)
    }
}

/// Whom a fault happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The node of this number.
    Node(usize),
    /// The node that leads the bucket's stream when the fault begins.
    Leader,
}

/// A fault, whom it happens to and how long: what [`Faults::next`] decides, or a test itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injection {
    /// What happens.
    pub fault: Fault,
    /// Whom it happens to.
    pub victim: Victim,
    /// How long it lasts.
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
/// Its `Display` is a summary of what it has injected: `seed 7: 3 faults (1 Cut, 2 Kill)`.
#[derive(Debug)]
pub struct Faults {
    seed: u64,
    random: SplitMix64,
    kinds: Vec<Fault>,
    lengths: RangeInclusive<Duration>,
    counts: BTreeMap<Fault, u64>,
}

impl Faults {
    /// Begins with this seed, or with the one in `SHIZUKU_SEED` where that is set, and prints `seed N`: with it, a failure
    /// can be had again. All faults are drawn, with lengths between 0.1 and 3 seconds.
    ///
    /// # Panics
    ///
    /// If `SHIZUKU_SEED` is not a number.
    pub fn new(seed: u64) -> Self {
        let seed = match std::env::var("SHIZUKU_SEED") {
            Ok(text) if !text.is_empty() => text
                .parse()
                .unwrap_or_else(|_| panic!("SHIZUKU_SEED is {text:?}, which is not a number")),
            _ => seed,
        };
        println!("seed {seed}");
        Self {
            seed,
            random: SplitMix64(seed),
            kinds: Fault::ALL.to_vec(),
            lengths: Duration::from_millis(100)..=Duration::from_secs(3),
            counts: BTreeMap::new(),
        }
    }

    /// Draws only from these. One that is named twice is drawn twice as often.
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

    /// The seed it began with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Decides what happens next, by nothing but the seed, what was decided before and the number of nodes. Half of what
    /// can happen to any node happens to the leader.
    ///
    /// # Panics
    ///
    /// If none of the faults can happen to this cluster: one server has nobody to be cut off from, and no leader.
    pub fn next(&mut self, cluster: &NatsCluster) -> Injection {
        let nodes = cluster.nodes().len();
        let possible: Vec<_> =
            self.kinds.iter().copied().filter(|fault| nodes > 1 || !fault.needs_others()).collect();
        assert!(!possible.is_empty(), "none of {:?} can happen to a single server", self.kinds);
        let fault = possible[self.random.below(possible.len())];
        // Drawn in any case, so that what follows does not depend on it.
        let (leader, node) = (self.random.below(2) == 0, self.random.below(nodes));
        let victim = if nodes > 1 && leader { Victim::Leader } else { Victim::Node(node) };
        let (from, to) = (self.lengths.start().as_millis(), self.lengths.end().as_millis());
        let spread = usize::try_from(to.saturating_sub(from)).expect("a length in milliseconds");
        let length = *self.lengths.start()
            + Duration::from_millis(
                u64::try_from(self.random.below(spread + 1)).expect("it was one"),
            );
        Injection { fault, victim, length }
    }

    /// Lets a fault happen to a cluster and its bucket, waits for its length, undoes it and counts it. The cluster may
    /// take longer to recover: [`NatsCluster::wait_until_healthy`] waits for that.
    ///
    /// Dropping the future undoes the fault too.
    ///
    /// # Panics
    ///
    /// As [`NatsCluster::leader_of`] does where the leader is asked for, and as the fault's own methods do.
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

    /// How many of each it has injected.
    pub fn counts(&self) -> &BTreeMap<Fault, u64> {
        &self.counts
    }

    /// How many it has injected.
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

/// Undoes a fault when it is dropped, which a test's end or a timeout may do before its time.
struct Undo<'a> {
    fault: Fault,
    index: usize,
    cluster: &'a NatsCluster,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The cluster goes too, and a second panic would end the process.
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

/// The generator SplitMix64 of Sebastiano Vigna, <https://prng.di.unimi.it/splitmix64.c>, in the public domain. No crate
/// promises that a seed gives the same numbers in its next version too.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`. The remainder favours small ones, by nothing that counts here.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a small number");
        usize::try_from(self.next() % end).expect("smaller still")
    }
}

#[cfg(test)]
mod tests {
    use super::SplitMix64;

    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = SplitMix64(1_234_567);
        let first: Vec<_> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}
