//! The updates of a watch as a stream that a hook can change.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use shizuku_kv::{KvResult, KvUpdate, Watch, WatchCursor, WatchLink};
use tokio::sync::watch;

/// An update of a watch, with the cursor that continues after it.
pub type Update = KvResult<(KvUpdate, WatchCursor)>;

/// The updates of a watch.
pub type Updates = BoxStream<'static, Update>;

/// Returns the watch with other updates. The connection state changes only while these are polled.
pub(super) fn changed(watch: Watch, with: impl FnOnce(Updates) -> Updates) -> Watch {
    let source = Source::new(watch);
    let link = source.link.subscribe();
    Watch::new(with(source.boxed())).with_link(link)
}

/// Returns the updates of a watch, each with its cursor.
pub fn updates(watch: Watch) -> Updates {
    Source::new(watch).boxed()
}

/// The original updates. Polling them passes the connection state on.
struct Source {
    watch: Watch,
    link: watch::Sender<WatchLink>,
}

impl Source {
    fn new(watch: Watch) -> Self {
        Self { link: watch::Sender::new(watch.link()), watch }
    }
}

impl Stream for Source {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        let update = self.watch.poll_next_unpin(cx);
        let link = self.watch.link();
        self.link.send_if_modified(|known| {
            let changes = *known != link;
            *known = link;
            changes
        });
        // An error may arrive before the first cursor. Its cursor is never used, because the error
        // ends the watch.
        let nowhere = || WatchCursor::new([0; 16], 0, SystemTime::UNIX_EPOCH);
        let cursor = self.watch.cursor().unwrap_or_else(nowhere);
        update.map(|update| update.map(|update| update.map(|update| (update, cursor))))
    }
}
