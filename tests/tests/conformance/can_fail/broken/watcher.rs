//! Broken watches.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use shizuku_kv::{
    Deadline, KvEntry, KvError, KvOperation, KvResult, KvUpdate, Watch, WatchCursor, WatchScope,
};
use shizuku_kv_tests::faulty::{Answer, Update, Updates, updates};

use super::reader::BrokenStore;
use super::{Fault, unsupported};

fn nowhere() -> WatchCursor {
    WatchCursor::new([0; 16], 0, SystemTime::UNIX_EPOCH)
}

/// Replaces each item by others.
fn replace(
    items: Updates,
    mut with: impl FnMut(Update) -> Vec<Update> + Send + 'static,
) -> Updates {
    items.flat_map(move |item| stream::iter(with(item))).boxed()
}

fn is_marker(item: &Update) -> bool {
    matches!(item, Ok((KvUpdate::CaughtUp, _)))
}

fn entry(item: &Update) -> Option<&KvEntry> {
    item.as_ref().ok()?.0.entry()
}

impl BrokenStore {
    pub(super) async fn watch(
        self: &Arc<Self>,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> KvResult<Watch> {
        let updates = match from {
            None => self.begin(scope, deadline).await?,
            Some(cursor) => self.resume(scope, cursor, deadline).await?,
        };
        let this = Arc::clone(self);
        let shown = Answer::from(Watch::new(updates)).map_entries(move |entry| this.shown(entry));
        shown.map_updates(|updates| self.deliver(updates)).try_into()
    }

    async fn inner_watch(
        self: &Arc<Self>,
        scope: WatchScope,
        from: Option<WatchCursor>,
        deadline: Deadline,
    ) -> KvResult<Updates> {
        let watcher = self.inner.watcher().ok_or_else(|| unsupported("watch"))?;
        if !self.breaks_scopes() {
            return Ok(updates(watcher.watch(scope, from, deadline).await?));
        }
        let (this, all) =
            (Arc::clone(self), updates(watcher.watch(WatchScope::All, from, deadline).await?));
        Ok(replace(all, move |item| {
            let out = entry(&item).is_some_and(|entry| !this.selects(&scope, &entry.key));
            if out { Vec::new() } else { vec![item] }
        }))
    }

    async fn begin(self: &Arc<Self>, scope: WatchScope, deadline: Deadline) -> KvResult<Updates> {
        let items = self.inner_watch(scope.clone(), None, deadline).await?;
        let this = Arc::clone(self);
        Ok(match self.fault {
            Fault::OverlapsTwice => match scope {
                WatchScope::Prefixes(prefixes) => {
                    replace(items, move |item| match entry(&item).map(|entry| entry.key.clone()) {
                        Some(key) => {
                            let times =
                                prefixes.iter().filter(|prefix| key.starts_with(prefix.as_str()));
                            vec![item; times.count()]
                        }
                        None => vec![item],
                    })
                }
                _ => items,
            },
            Fault::ScopeEndsWithState => {
                let mut all = self.inner_watch(WatchScope::All, None, deadline).await?;
                let mut in_state = true;
                all = replace(all, move |item| {
                    in_state &= !is_marker(&item);
                    let out =
                        in_state && entry(&item).is_some_and(|entry| !scope.matches(&entry.key));
                    if out { Vec::new() } else { vec![item] }
                });
                all
            }
            Fault::StateIsHistory => {
                let mut before: Vec<Update> = Vec::new();
                for key in self.inner.keys(scope, Duration::from_secs(5)).try_collect().await? {
                    let history = self.inner.history(key, deadline).try_collect().await?;
                    let older = history.len().saturating_sub(1);
                    before.extend(
                        history.into_iter().take(older).map(|entry| Ok((entry.into(), nowhere()))),
                    );
                }
                stream::iter(before).chain(items).boxed()
            }
            Fault::StateEndsAtRemoved => {
                let state = self.inner.scan(scope, Duration::from_secs(5)).try_collect().await?;
                let mut versions: Vec<_> =
                    state.iter().filter_map(|entry| entry.version.as_u64()).collect();
                versions.sort_unstable();
                let end = versions.last().copied().unwrap_or(0);
                let mut expected = VecDeque::from(versions);
                let mut stopped = false;
                replace(items, move |item| match item {
                    Ok((KvUpdate::CaughtUp, _)) if stopped => Vec::new(),
                    Ok((KvUpdate::Put(entry), cursor)) => {
                        let version = entry.version.as_u64().unwrap_or(0);
                        let stops =
                            !stopped && expected.pop_front().is_some_and(|next| next != version);
                        stopped |= stops;
                        let marker = stops.then(|| Ok((KvUpdate::CaughtUp, cursor)));
                        let item = (!stopped || version > end).then(|| Ok((entry.into(), cursor)));
                        [marker, item].into_iter().flatten().collect()
                    }
                    item => vec![item],
                })
            }
            Fault::MarkerFirst => {
                let first = stream::iter([Ok((KvUpdate::CaughtUp, nowhere()))]);
                let rest =
                    replace(items, |item| if is_marker(&item) { Vec::new() } else { vec![item] });
                first.chain(rest).boxed()
            }
            Fault::StateCursorIsEnd => {
                let mut ahead = self.inner_watch(scope, None, deadline).await?;
                let mut end = nowhere();
                while let Some(item) = ahead.next().await {
                    end = item.as_ref().map_or(end, |(_, cursor)| *cursor);
                    if is_marker(&item) {
                        break;
                    }
                }
                let mut in_state = true;
                replace(items, move |item| {
                    in_state &= !is_marker(&item);
                    vec![item.map(|(update, cursor)| (update, if in_state { end } else { cursor }))]
                })
            }
            Fault::OneWatchOnly => {
                let mine = {
                    let mut memory = this.memory.lock().unwrap();
                    memory.watches += 1;
                    memory.watches
                };
                replace(items, move |item| {
                    let newest = this.memory.lock().unwrap().watches == mine;
                    if newest || entry(&item).is_none() { vec![item] } else { Vec::new() }
                })
            }
            _ => items,
        })
    }

    async fn resume(
        self: &Arc<Self>,
        scope: WatchScope,
        cursor: WatchCursor,
        deadline: Deadline,
    ) -> KvResult<Updates> {
        let resumed = self.inner_watch(scope.clone(), Some(cursor), deadline).await;
        Ok(match self.fault {
            Fault::ForgetsIncarnation => match resumed {
                Err(KvError::CursorExpired { .. }) => {
                    live_only(self.inner_watch(scope, None, deadline).await?)
                }
                resumed => resumed?,
            },
            Fault::SkipsForward => live_only(resumed?),
            Fault::ResumesFromStart => self.inner_watch(scope, None, deadline).await?,
            Fault::ResumeForgetsScope => {
                self.inner_watch(WatchScope::All, Some(cursor), deadline).await?
            }
            Fault::ResumeForgetsDeletions => {
                let mut in_state = true;
                replace(resumed?, move |item| {
                    in_state &= !is_marker(&item);
                    let deletion = entry(&item).is_some_and(KvEntry::is_tombstone);
                    if in_state && deletion { Vec::new() } else { vec![item] }
                })
            }
            Fault::ResumedCursorStays => {
                replace(resumed?, move |item| vec![item.map(|(update, _)| (update, cursor))])
            }
            Fault::CursorUsedOnce => {
                let bytes = cursor.to_bytes().to_vec();
                let mut memory = self.memory.lock().unwrap();
                if memory.cursors.contains(&bytes) {
                    let store = self.inner.name().to_owned();
                    return Err(KvError::cursor_expired(store, "it was used"));
                }
                memory.cursors.push(bytes);
                resumed?
            }
            _ => resumed?,
        })
    }

    /// Applies the faults that are the same for all watches.
    fn deliver(&self, items: Updates) -> Updates {
        let mut count = 0_usize;
        let mut caught_up = false;
        let fault = self.fault;
        match fault {
            Fault::NoMarker => {
                replace(items, |item| if is_marker(&item) { Vec::new() } else { vec![item] })
            }
            Fault::NoMarkerWhenEmpty => replace(items, move |item| {
                count += 1;
                if is_marker(&item) && count == 1 { Vec::new() } else { vec![item] }
            }),
            Fault::ManyMarkers => replace(items, move |item| {
                caught_up |= is_marker(&item);
                let again = item.clone().ok().filter(|_| caught_up && !is_marker(&item));
                let again = again.map(|(_, cursor)| Ok((KvUpdate::CaughtUp, cursor)));
                [Some(item), again].into_iter().flatten().collect()
            }),
            Fault::EarlyMarker => {
                let mut newest = 0;
                replace(items, move |item| {
                    let version =
                        entry(&item).and_then(|entry| entry.version.as_u64()).unwrap_or(0);
                    // Simulates a backend that miscounts its pending entries when pending ones are
                    // replaced. A jump of the version shows that.
                    let jumped = newest != 0 && version > newest + 50;
                    newest = version;
                    let marker = is_marker(&item);
                    let early = match &item {
                        Ok((_, cursor)) if (jumped || marker) && !caught_up => {
                            caught_up = true;
                            Some(Ok((KvUpdate::CaughtUp, *cursor)))
                        }
                        _ => None,
                    };
                    let item = (!marker).then_some(item);
                    [item, early].into_iter().flatten().collect()
                })
            }
            Fault::DeletionTwice => replace(items, move |item| {
                let deleted = entry(&item).is_some_and(KvEntry::is_tombstone);
                vec![item; if deleted { 2 } else { 1 }]
            }),
            Fault::DuplicatedUpdate => replace(items, move |item| {
                count += 1;
                vec![item; if count.is_multiple_of(3) { 2 } else { 1 }]
            }),
            Fault::GoesBack => {
                let mut held = HashMap::new();
                replace(items, move |item| {
                    let Some(key) = entry(&item).map(|entry| entry.key.clone()) else {
                        return vec![item];
                    };
                    match held.remove(&key) {
                        Some(older) => vec![item, older],
                        None if caught_up_at(&mut count, 4) => {
                            held.insert(key, item);
                            Vec::new()
                        }
                        None => vec![item],
                    }
                })
            }
            Fault::LosesFirstLive => replace(items, move |item| {
                let first = caught_up && count == 0 && !is_marker(&item) && item.is_ok();
                caught_up |= is_marker(&item);
                count += usize::from(first);
                if first { Vec::new() } else { vec![item] }
            }),
            Fault::LosesSome => replace(items, move |item| {
                count += usize::from(entry(&item).is_some());
                if entry(&item).is_some() && count.is_multiple_of(7) {
                    Vec::new()
                } else {
                    vec![item]
                }
            }),
            Fault::DropsDeletions => replace(items, |item| {
                let deletion = entry(&item).is_some_and(KvEntry::is_tombstone);
                if deletion { Vec::new() } else { vec![item] }
            }),
            Fault::DropsValues => replace(items, |item| {
                vec![item.map(|(update, cursor)| match update.into_entry() {
                    Some(mut entry) => {
                        entry.value.clear();
                        (entry.into(), cursor)
                    }
                    None => (KvUpdate::CaughtUp, cursor),
                })]
            }),
            Fault::FenceNotWatched => replace(items, |item| {
                vec![item.map(|(update, cursor)| match update.into_entry() {
                    Some(entry) => (entry.with_fence(None).into(), cursor),
                    None => (KvUpdate::CaughtUp, cursor),
                })]
            }),
            Fault::SilentExpiry | Fault::ExpiryIsDelete => replace(items, move |item| {
                let expired =
                    entry(&item).is_some_and(|entry| entry.operation == KvOperation::Expire);
                match item {
                    Ok(_) if expired && fault == Fault::SilentExpiry => Vec::new(),
                    Ok((update, cursor)) if expired => update
                        .into_entry()
                        .map(|mut entry| {
                            entry.operation = KvOperation::Delete;
                            Ok((entry.into(), cursor))
                        })
                        .into_iter()
                        .collect(),
                    item => vec![item],
                }
            }),
            Fault::LosesAfterPending => Forgetful { items, polled: false }.boxed(),
            Fault::LossyBuffer => Lossy { items, buffer: VecDeque::new() }.boxed(),
            Fault::EndsSilently => {
                replace(items, |item| if item.is_err() { Vec::new() } else { vec![item] })
            }
            Fault::WaitsForGoneStore => {
                let first = items.take_while(|item| std::future::ready(item.is_ok()));
                first.chain(stream::pending()).boxed()
            }
            Fault::WatchHangs => stream::pending().boxed(),
            _ => items,
        }
    }
}

fn caught_up_at(count: &mut usize, every: usize) -> bool {
    *count += 1;
    count.is_multiple_of(every)
}

fn live_only(items: Updates) -> Updates {
    let mut live = false;
    replace(items, move |item| {
        live |= is_marker(&item);
        if live || item.is_err() { vec![item] } else { Vec::new() }
    })
}

/// Loses a value that arrives after it was polled in vain.
struct Forgetful {
    items: Updates,
    polled: bool,
}

impl Stream for Forgetful {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        let polled = self.items.poll_next_unpin(cx);
        if polled.is_pending() {
            self.polled = true;
        }
        if self.polled && matches!(&polled, Poll::Ready(Some(Ok((KvUpdate::Put(_), _))))) {
            self.polled = false;
            return self.items.poll_next_unpin(cx);
        }
        polled
    }
}

/// Keeps the newest twenty of the pending updates.
struct Lossy {
    items: Updates,
    buffer: VecDeque<Update>,
}

impl Stream for Lossy {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        while let Some(Some(item)) = self.items.next().now_or_never() {
            self.buffer.push_back(item);
            if self.buffer.len() > 20 {
                self.buffer.pop_front();
            }
        }
        match self.buffer.pop_front() {
            Some(item) => Poll::Ready(Some(item)),
            None => self.items.poll_next_unpin(cx),
        }
    }
}
