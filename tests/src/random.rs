//! Reproducible decisions.

/// A source of random numbers: the same seed makes the same decisions on any machine.
#[derive(Clone, Debug)]
pub struct Random(fastrand::Rng);

impl Random {
    /// Returns the only source of a seed.
    pub fn from_seed(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Returns one of many independent sources, all of one seed.
    pub fn new(seed: u64, source: &str) -> Self {
        // FNV-1a makes any two names far apart.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self::from_seed(seed ^ source.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
    }

    /// Returns any number.
    pub fn number(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.u64(..end)
    }

    /// Returns an index below `end`.
    pub fn index(&mut self, end: usize) -> usize {
        self.0.usize(..end)
    }

    /// Returns true once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Chooses some of these at random.
    pub fn choose<T>(&mut self, mut from: Vec<T>, many: usize) -> Vec<T> {
        let mut chosen = Vec::new();
        while chosen.len() < many && !from.is_empty() {
            chosen.push(from.swap_remove(self.index(from.len())));
        }
        chosen
    }
}
