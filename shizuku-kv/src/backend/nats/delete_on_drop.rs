//! Deletion of consumers whose reader was dropped.
//!
//! The server keeps a consumer for a while after its last request, so that each abandoned one
//! counts towards the stream's limit. A reader is often dropped together with its connection. A
//! client whose last handle is dropped closes its socket at once. The server then discards what it
//! has not read, if messages for the client were still on their way. So a deletion holds the
//! connection until the server has answered, and a shutdown deletes all consumers before it ends
//! (ADR 0007).

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::unconstrained;
use tokio::time::timeout;

use super::link::{CROWD, Link, Mark};
use super::pending::Copies;

/// Timeout for the answer to a deletion.
pub(super) const ANSWERED: Duration = Duration::from_secs(5);

/// Maximum time for an abandoned creation to take effect.
const LATE_CREATION: Duration = Duration::from_secs(2);

/// Deletes a consumer when it is dropped, without waiting.
///
/// Without a runtime, or if the connection has ended, the server deletes the consumer after its
/// inactivity threshold.
#[derive(Debug)]
pub(super) struct DeleteOnDrop {
    link: Arc<Link>,
    subject: String,
    /// Whether the server has confirmed the creation. Otherwise the server may process the creation
    /// after a deletion.
    pub(super) exists: bool,
}

impl DeleteOnDrop {
    /// Registers the consumer. Must be called before its creation is sent.
    pub(super) fn new(link: &Arc<Link>, stream: &str, name: &str) -> Self {
        let subject = link.space().api(&format!("CONSUMER.DELETE.{stream}.{name}"));
        link.consumers().add(subject.clone());
        Self { link: Arc::clone(link), subject, exists: false }
    }
}

impl Drop for DeleteOnDrop {
    fn drop(&mut self) {
        let (link, subject, exists) =
            (Arc::clone(&self.link), mem::take(&mut self.subject), self.exists);
        let Ok(runtime) = Handle::try_current() else {
            let _ =
                unconstrained(link.client().publish(subject.clone(), Bytes::new())).now_or_never();
            link.consumers().remove(&subject);
            return;
        };
        // Fails during and after a shutdown, which deletes all consumers.
        let Ok(mark) = link.mark("drop") else { return };
        runtime.spawn(async move {
            // Bounded, so that a disconnected client does not accumulate tasks.
            let _ = timeout(ANSWERED, delete(&link, mark, &subject)).await;
            if !exists {
                tokio::time::sleep(LATE_CREATION).await;
                let _ = timeout(ANSWERED, delete(&link, mark, &subject)).await;
            }
            link.consumers().remove(&subject);
        });
    }
}

/// Deletes a consumer. Waits until the server has answered, or no answer can arrive.
pub(super) async fn delete(link: &Link, mark: Mark, subject: &str) {
    let mut copies = Copies::default();
    if link.requests().send(&mut copies, subject.to_owned(), Bytes::new()).await.is_err() {
        return;
    }
    tokio::select! {
        _ = copies.answer() => {}
        _ = link.interrupted_within(mark, [subject], CROWD) => {}
    }
}
