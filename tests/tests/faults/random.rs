//! Decisions that can be had again.

/// The generator SplitMix64, as the harness has it for its faults: the same seed gives the same numbers on any machine
/// and with any version of any crate.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// One of many sources that are apart, all of one seed.
    pub(crate) fn new(seed: u64, source: &str) -> Self {
        // FNV-1a: any two names are far apart.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let name = source.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        let mut random = Self(seed ^ name);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Takes some of these, chosen at random.
    pub(crate) fn choose<T>(&mut self, mut from: Vec<T>, many: usize) -> Vec<T> {
        let mut chosen = Vec::new();
        while chosen.len() < many && !from.is_empty() {
            let index = usize::try_from(self.below(from.len() as u64)).expect("an index");
            chosen.push(from.swap_remove(index));
        }
        chosen
    }
}
