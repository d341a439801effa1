//! Selects the keys that a session reads to find those of crashed processes.

use std::collections::BTreeSet;
use std::mem;
use std::ops::Range;

/// Number of keys that an opening reads in its first request.
pub(super) const FIRST_WINDOW: u32 = 8;

/// Maximum number of keys that an opening reads in one request.
const LARGEST_WINDOW: u32 = 512;

/// Maximum number of reusable keys. Further sessions get keys of their own.
pub(super) const SLOTS: u32 = 1 << 15;

/// Maximum number of keys in one request of a search.
pub(super) const WINDOW: u32 = 32;

/// Number of keys of a sample in each range of numbers from a power of two to the next.
const SAMPLES: usize = 2;

/// The search of one session for keys of crashed processes.
///
/// It begins with a sample of all numbers, which is one request for each session. The numbers of a
/// window are used before those of the next, so the sample also shows which windows are used. If
/// the session finds a key of a crashed process, it reads all of these once more. Without such keys
/// the search ends with the sample, so that the number of messages does not grow with the square of
/// the number of sessions.
#[derive(Debug, Default)]
pub(super) struct Search {
    is_sampled: bool,
    /// End of the windows that may have used numbers.
    end: u32,
    /// Next number of the search, if `remaining` is not zero.
    next: u32,
    /// Number of keys that the search has yet to read.
    remaining: u32,
    has_found_dead: bool,
}

impl Search {
    /// Returns the numbers of the keys to be read next. Returns `None` if the search is over.
    pub(super) fn next(&mut self) -> Option<Vec<u32>> {
        if !self.is_sampled {
            return Some(sample());
        }
        if mem::take(&mut self.has_found_dead) {
            self.remaining = self.end;
        }
        let length = WINDOW.min(self.remaining);
        (length > 0).then(|| (self.next..self.next + length).map(|n| n % self.end).collect())
    }

    /// Records that the keys of the last call of [`next`](Self::next) were read, and which of their
    /// numbers have been used.
    pub(super) fn note_read(&mut self, used: impl Iterator<Item = u32>) {
        if self.is_sampled {
            let length = WINDOW.min(self.remaining);
            self.remaining -= length;
            self.next = (self.next + length) % self.end;
        } else {
            self.is_sampled = true;
            let last = used.max().unwrap_or(0);
            let mut window = 0..FIRST_WINDOW;
            while window.end <= last {
                window = after(&window);
            }
            // The sample may miss the used numbers of the next window, or of the next range.
            let ranges = 2 * (last + 1).next_power_of_two();
            self.end = after(&window).end.max(ranges).min(SLOTS);
            self.next = fastrand::u32(0..self.end);
        }
    }

    /// Records that a key of a crashed process was found. The search begins again.
    pub(super) fn note_dead(&mut self) {
        self.has_found_dead = true;
    }
}

/// Returns the next numbers that an opening reads: seven times as many as it has read before. It
/// reads them only if those are used.
pub(super) fn after(window: &Range<u32>) -> Range<u32> {
    let length = (7 * window.end).min(LARGEST_WINDOW);
    window.end..window.end.saturating_add(length).min(SLOTS)
}

/// Returns random numbers, up to [`SAMPLES`] in each range from a power of two to the next. The
/// numbers of the first window are read by each opening.
fn sample() -> Vec<u32> {
    let starts = std::iter::successors(Some(FIRST_WINDOW), |start| Some(2 * start));
    let ranges = starts.take_while(|start| *start < SLOTS).map(|start| start..2 * start);
    let numbers = ranges.flat_map(|range| (0..SAMPLES).map(move |_| fastrand::u32(range.clone())));
    numbers.collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads keys until the search is over, and returns their numbers.
    fn read_all(search: &mut Search, is_used: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut read = Vec::new();
        while let Some(numbers) = search.next() {
            assert!(numbers.len() <= WINDOW as usize);
            search.note_read(numbers.iter().copied().filter(|number| is_used(*number)));
            read.extend(numbers);
        }
        read
    }

    #[test]
    fn search_without_dead_sessions_is_one_sample() {
        for used in [0, 1, 8, 200, SLOTS] {
            let mut search = Search::default();
            let read = read_all(&mut search, |number| number < used);
            assert!((12..=SAMPLES * 12).contains(&read.len()));
            assert!(read.iter().all(|number| (FIRST_WINDOW..SLOTS).contains(number)));
        }
    }

    /// The sample finds no used number of the last window, which may have few.
    #[test]
    fn search_after_dead_session_reads_all_used_windows() {
        for used in [1, 8, 9, 100, 512, 513, 10_000] {
            let mut window = 0..FIRST_WINDOW;
            while window.end < used {
                window = after(&window);
            }
            let is_found = |number| number < window.start;
            let mut search = Search::default();
            read_all(&mut search, is_found);
            for _ in 0..2 {
                search.note_dead();
                let read: BTreeSet<_> = read_all(&mut search, is_found).into_iter().collect();
                assert!((0..window.end).all(|number| read.contains(&number)), "{used}");
                assert!(read.len() as u32 <= 64.max(8 * window.end), "{used}");
            }
        }
        let mut search = Search::default();
        read_all(&mut search, |_| true);
        search.note_dead();
        assert_eq!(read_all(&mut search, |_| true).len(), SLOTS as usize);
    }

    #[test]
    fn windows_grow_and_cover_all_slots() {
        let mut window = 0..FIRST_WINDOW;
        let mut windows = Vec::new();
        while !window.is_empty() {
            windows.push(window.clone());
            window = after(&window);
        }
        assert_eq!(windows[..4], [0..8, 8..64, 64..512, 512..1024]);
        assert!(windows.windows(2).all(|two| two[0].end == two[1].start));
        assert_eq!(windows.last().map(|window| window.end), Some(SLOTS));
        assert!(windows.iter().all(|window| window.len() <= LARGEST_WINDOW as usize));
    }
}
