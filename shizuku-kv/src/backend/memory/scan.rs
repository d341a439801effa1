//! Scans: the live entries of a scope, page by page, in the order of the keys.
//!
//! A scan continues after the last visited key. A key that is live during the whole scan keeps its
//! place in the order of keys. The scan therefore delivers this key exactly once, whatever is
//! written meanwhile.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use super::shared::{Call, StoreState};
use crate::backend::embedded::{Range, Selector, poll_share};
use crate::backend::source::{Source, items};
use crate::store::{Deadline, Key, KvEntry, KvResult, KvStream, WatchScope};

/// Maximum number of keys that are visited under one acquisition of the lock.
pub(super) const PAGE: usize = 256;

/// Returns the live entries in scope, each passed through `project`, so that a listing of keys
/// keeps no values in memory.
pub(super) fn scan<T: Send + 'static>(
    shared: Arc<StoreState>,
    operation: &'static str,
    scope: &WatchScope,
    limit: Duration,
    project: fn(&KvEntry) -> T,
) -> KvStream<T> {
    let (ranges, page) = (Selector::new(scope).into_ranges().into(), Vec::new().into_iter());
    let scan = Scan { shared, operation, limit, ranges, after: None, page, project };
    KvStream::with_progress(items(scan, poll_share))
}

struct Scan<T> {
    shared: Arc<StoreState>,
    operation: &'static str,
    /// Timeout for an item.
    limit: Duration,
    /// The remaining ranges. A part of the first may have been visited.
    ranges: VecDeque<Range>,
    /// The last visited key of the first range.
    after: Option<Key>,
    page: vec::IntoIter<T>,
    project: fn(&KvEntry) -> T,
}

impl<T: Send + 'static> Source for Scan<T> {
    type Item = T;

    fn next_at_once(&mut self) -> KvResult<Option<T>> {
        Ok(self.page.next())
    }

    async fn next(&mut self) -> KvResult<Option<T>> {
        loop {
            if let Some(item) = self.page.next() {
                return Ok(Some(item));
            }
            if self.ranges.is_empty() {
                return Ok(None);
            }
            if self.after.is_some() {
                self.shared.yield_now().await;
            }
            self.load_page().await?;
        }
    }
}

impl<T> Scan<T> {
    /// Loads the next page of the first range.
    async fn load_page(&mut self) -> KvResult<()> {
        let Some(range) = self.ranges.front() else { return Ok(()) };
        let from = match &self.after {
            Some(key) => Bound::Excluded(key.as_str()),
            None => Bound::Included(range.start()),
        };
        let call = Call::new(self.operation).by(Deadline::after(self.limit));
        let load = self.shared.with(call, |contents| {
            let mut page = Vec::new();
            let mut visited = 0;
            let mut last = None;
            let in_range =
                contents.log.newest_from(from).take_while(|entry| range.contains(&entry.key));
            for entry in in_range.take(PAGE) {
                visited += 1;
                last = Some(&entry.key);
                if !entry.is_tombstone() {
                    page.push((self.project)(entry));
                }
            }
            // A page that is not full is the last of its range.
            Ok((page, last.filter(|_| visited == PAGE).cloned()))
        });
        let (page, after) = load.await?;
        if after.is_none() {
            self.ranges.pop_front();
        }
        self.after = after;
        self.page = page.into_iter();
        Ok(())
    }
}
