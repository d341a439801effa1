//! Deletion of consumers whose reader was dropped.
//!
//! The server keeps a consumer for a while after its last request, so that each abandoned one
//! counts towards the stream's limit. A reader is often dropped together with its connection. When
//! its last handle is dropped, the client discards all bytes that it has not written. So a deletion
//! holds the client until it is written, and a shutdown deletes all consumers before it ends (ADR
//! 0007).

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::unconstrained;

use super::link::Link;

/// Timeout for a deletion to be written.
const WRITTEN: Duration = Duration::from_secs(5);

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
    /// Registers the consumer. To be called before its creation is sent.
    pub(super) fn new(link: &Arc<Link>, stream: &str, name: &str) -> Self {
        let subject = link.space().api(&format!("CONSUMER.DELETE.{stream}.{name}"));
        link.consumers().add(subject.clone());
        Self { link: Arc::clone(link), subject, exists: false }
    }
}

impl Drop for DeleteOnDrop {
    fn drop(&mut self) {
        self.link.consumers().remove(&self.subject);
        if self.link.is_over() {
            return;
        }
        let (client, subject, exists) =
            (self.link.client().clone(), mem::take(&mut self.subject), self.exists);
        let delete = {
            let client = client.clone();
            move || {
                let (client, subject) = (client.clone(), subject.clone());
                async move { client.publish(subject, Bytes::new()).await }
            }
        };
        // Sent at once, so that a shutdown that begins now follows it.
        let is_sent = unconstrained(delete()).now_or_never().is_some();
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            // Bounded, so that a disconnected client does not accumulate tasks.
            let written = tokio::time::timeout(WRITTEN, async {
                if !is_sent {
                    let _ = delete().await;
                }
                let _ = client.flush().await;
            });
            let _ = written.await;
            if !exists {
                tokio::time::sleep(LATE_CREATION).await;
                let _ = tokio::time::timeout(WRITTEN, async {
                    let _ = delete().await;
                    let _ = client.flush().await;
                })
                .await;
            }
        });
    }
}
