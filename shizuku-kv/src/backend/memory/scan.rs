//! Scans: the live entries of a scope, page by page, in the order of the keys.
//!
//! A scan goes on after the last key that it looked at. A key that lives throughout is in the order
//! throughout, so that it is met exactly once, whatever is written meanwhile.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use futures_util::stream;

use super::selector::{Range, Selector};
use super::share;
use super::shared::{Call, StoreState};
use crate::store::{Deadline, Key, KvEntry, KvResult, KvStream, WatchScope};

/// How many keys are looked at under one lock.
pub(super) const PAGE: usize = 256;

/// The live entries in scope, each seen through `project`, so that a listing of keys does not hold
/// the values.
pub(super) fn scan<T: Send + 'static>(
    shared: Arc<StoreState>,
    operation: &'static str,
    scope: &WatchScope,
    limit: Duration,
    project: fn(&KvEntry) -> T,
) -> KvStream<T> {
    let (ranges, page) = (Selector::new(scope).into_ranges().into(), Vec::new().into_iter());
    let scan = Scan { shared, operation, limit, ranges, after: None, page, project };
    KvStream::with_progress(stream::try_unfold(scan, |mut scan| async move {
        Ok(scan.next().await?.map(|item| (item, scan)))
    }))
}

struct Scan<T> {
    shared: Arc<StoreState>,
    operation: &'static str,
    /// The longest that an item may take.
    limit: Duration,
    /// What is still to be looked at; the first in part.
    ranges: VecDeque<Range>,
    /// The last key of the first range that was looked at.
    after: Option<Key>,
    page: vec::IntoIter<T>,
    project: fn(&KvEntry) -> T,
}

impl<T> Scan<T> {
    async fn next(&mut self) -> KvResult<Option<T>> {
        // However many there are, and however many pages of tombstones in a row, other tasks get to
        // run.
        share().await;
        loop {
            if let Some(item) = self.page.next() {
                return Ok(Some(item));
            }
            if self.ranges.is_empty() {
                return Ok(None);
            }
            self.turn().await?;
        }
    }

    /// Takes the next page of the first range.
    async fn turn(&mut self) -> KvResult<()> {
        let Some(range) = self.ranges.front() else { return Ok(()) };
        let from = match &self.after {
            Some(key) => Bound::Excluded(key.as_str()),
            None => Bound::Included(range.start()),
        };
        let call = Call::new(self.operation).by(Deadline::after(self.limit));
        let turn = self.shared.with(call, |contents| {
            let mut page = Vec::new();
            let mut looked_at = 0;
            let mut last = None;
            let in_range =
                contents.log.newest_from(from).take_while(|entry| range.contains(&entry.key));
            for entry in in_range.take(PAGE) {
                looked_at += 1;
                last = Some(&entry.key);
                if !entry.is_tombstone() {
                    page.push((self.project)(entry));
                }
            }
            // A page that is not full is the last of its range.
            Ok((page, last.filter(|_| looked_at == PAGE).cloned()))
        });
        let (page, after) = turn.await?;
        if after.is_none() {
            self.ranges.pop_front();
        }
        self.after = after;
        self.page = page.into_iter();
        Ok(())
    }
}
