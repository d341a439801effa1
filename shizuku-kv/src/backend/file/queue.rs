//! The reads that wait for a thread, in two kinds, so that short ones do not wait for slices.

use std::collections::VecDeque;

use super::failure::Failure;
use super::view::View;

/// Number of threads that read.
pub(super) const READERS: usize = 4;

/// Maximum number of reads of one transaction.
const READS_TOGETHER: usize = 32;

/// A read, which gets a snapshot or the reason why there is none.
pub(super) type ReadJob = Box<dyn FnOnce(Result<&View<'_>, &Failure>) + Send>;

/// The reads that wait.
#[derive(Default)]
pub(super) struct Reads {
    pub(super) short: VecDeque<ReadJob>,
    /// Slices of scans and watches. Each has a transaction of its own, and one thread is left for
    /// short reads.
    pub(super) slices: VecDeque<ReadJob>,
    pub(super) running_slices: usize,
    /// Whether a slice comes next, if both kinds wait.
    is_turn_of_slices: bool,
    pub(super) is_closed: bool,
}

impl Reads {
    /// Takes the next reads. Returns whether they are a slice.
    pub(super) fn take(&mut self) -> Option<(VecDeque<ReadJob>, bool)> {
        let may_slice = self.running_slices + 1 < READERS && !self.slices.is_empty();
        if may_slice && (self.is_turn_of_slices || self.short.is_empty()) {
            self.is_turn_of_slices = false;
            self.running_slices += 1;
            return Some((self.slices.pop_front().into_iter().collect(), true));
        }
        if self.short.is_empty() {
            return None;
        }
        self.is_turn_of_slices = true;
        let share = self.short.len().div_ceil(READERS).min(READS_TOGETHER);
        Some((self.short.drain(..share).collect(), false))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn short_reads_do_not_wait_for_slices() {
        let mut reads = Reads::default();
        reads
            .slices
            .extend((0..128).map(|_| Box::new(|_: Result<&View<'_>, &Failure>| ()) as ReadJob));
        for _ in 1..READERS {
            assert!(reads.take().unwrap().1);
        }
        // One thread is left for them.
        assert!(reads.take().is_none());
        reads.short.push_back(Box::new(|_| ()));
        let (taken, is_slice) = reads.take().unwrap();
        assert!(taken.len() == 1 && !is_slice);
        // Neither kind keeps the other one waiting.
        reads.running_slices = 0;
        for turn in 0..10 {
            reads.short.push_back(Box::new(|_| ()));
            assert_eq!(reads.take().unwrap().1, turn % 2 == 0);
            reads.running_slices = 0;
        }
    }
}
