//! Scans: the live entries of a scope, slice by slice, in the order of the keys.
//!
//! A scan continues after the last visited key. A key that is live during the whole scan keeps its
//! place in the order of keys. The scan therefore delivers this key exactly once, whatever is
//! written meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use futures_util::stream;

use super::engine::Call;
use super::record::Head;
use super::state::StoreState;
use super::view::Budget;
use crate::backend::embedded::{Range, Selector};
use crate::store::{Deadline, Key, KvResult, KvStream, WatchScope};

/// Maximum number of keys that a slice visits.
pub(super) const PAGE: usize = 1024;

/// Returns the live entries in scope, each passed through `project`, so that a listing of keys
/// keeps no values in memory.
pub(super) fn scan<T: Send + 'static>(
    state: Arc<StoreState>,
    operation: &'static str,
    scope: &WatchScope,
    limit: Duration,
    project: fn(Key, Head, &[u8]) -> T,
) -> KvStream<T> {
    let (ranges, page) = (Selector::new(scope).into_ranges().into(), Vec::new().into_iter());
    let scan = Scan { state, operation, limit, ranges, after: None, page, project };
    KvStream::with_progress(stream::unfold(Some(scan), |scan| async {
        let mut scan = scan?;
        match scan.next().await {
            Ok(item) => item.map(|item| (Ok(item), Some(scan))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct Scan<T> {
    state: Arc<StoreState>,
    operation: &'static str,
    /// Timeout for a slice.
    limit: Duration,
    /// The remaining ranges. A part of the first may have been visited.
    ranges: VecDeque<Range>,
    /// The last visited key of the first range.
    after: Option<Key>,
    page: vec::IntoIter<T>,
    project: fn(Key, Head, &[u8]) -> T,
}

impl<T: Send + 'static> Scan<T> {
    async fn next(&mut self) -> KvResult<Option<T>> {
        loop {
            if let Some(item) = self.page.next() {
                return Ok(Some(item));
            }
            let Some(range) = self.ranges.front() else { return Ok(None) };
            let (range, after, project) = (range.clone(), self.after.clone(), self.project);
            let call = Call::new(self.operation, Deadline::after(self.limit)).slice();
            let load = self.state.read(call, move |entries, _| {
                let mut page = Vec::new();
                let budget = Budget::new(PAGE);
                let last = entries.scan(&range, after.as_ref(), budget, project, &mut page)?;
                Ok((page, last))
            });
            let (page, after) = load.await?;
            if after.is_none() {
                self.ranges.pop_front();
            }
            self.after = after;
            self.page = page.into_iter();
        }
    }
}
