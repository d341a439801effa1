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
use futures_util::future::join_all;
use tokio::time::Instant;

use super::api::may_pass;
use super::link::{CROWD, Interruption, Link, Mark};
use super::pending::Copies;
use crate::store::backoff;
use crate::store::timer::{sleep, timeout_at};

/// Timeout for the answer to a deletion.
const ANSWERED: Duration = Duration::from_secs(5);

/// Time for an abandoned creation to take effect, unless earlier creations took longer.
const LATE_CREATION: Duration = Duration::from_secs(2);

/// Deletes a consumer when it is dropped, without waiting.
///
/// If the connection or its runtime has ended, the server deletes the consumer after its inactivity
/// threshold.
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
        if link.is_ending() {
            // The shutdown deletes all consumers.
            return;
        }
        let Ok(mark) = link.mark("drop") else {
            // No answer can arrive.
            let _ = link.client().publish(subject.clone(), Bytes::new()).now_or_never();
            link.consumers().remove(&subject);
            return;
        };
        // The current runtime may end at once, and a thread may have none.
        self.link.runtime.spawn(async move {
            delete_in_time(&link, mark, &subject).await;
            if !exists {
                sleep(link.pace().patience(LATE_CREATION)).await;
                delete_in_time(&link, mark, &subject).await;
            }
            link.consumers().remove(&subject);
        });
    }
}

/// Deletes all consumers of a connection that is being shut down. Without an answer, the server
/// deletes them after their last request.
pub(super) async fn delete_all(link: &Link, mark: Mark, limit: Duration) {
    let subjects = link.consumers().take();
    let deleted = join_all(subjects.iter().map(|subject| delete(link, mark, subject)));
    let _ = timeout_at(Instant::now() + ANSWERED.min(limit), deleted).await;
}

/// Bounded, so that a disconnected client does not accumulate tasks.
async fn delete_in_time(link: &Link, mut mark: Mark, subject: &str) {
    let deleted = async {
        while !delete(link, mark, subject).await {
            let Ok(now) = link.mark("drop") else { return };
            mark = now;
        }
    };
    let _ = timeout_at(Instant::now() + ANSWERED, deleted).await;
}

/// Deletes a consumer. Returns false if the connection broke before the server answered.
///
/// An answer is the proof: a client can report a message as sent that the server never reads.
async fn delete(link: &Link, mark: Mark, subject: &str) -> bool {
    let first = link.pace().patience(Duration::from_millis(250));
    let mut pauses = backoff(first, first.max(Duration::from_secs(1)));
    let mut copies = Copies::default();
    loop {
        // A disconnected client queues its messages. One copy is enough then.
        if (copies.is_empty() || link.is_connected())
            && link.requests().send(&mut copies, subject.to_owned(), Bytes::new()).await.is_err()
        {
            // The client's task has ended.
            return true;
        }
        let pause = sleep(pauses.next().unwrap_or_default());
        tokio::select! {
            answer = copies.answer() => match answer {
                Some(answer) if may_pass(&answer) => copies = Copies::default(),
                _ => return true,
            },
            interruption = link.interrupted_within(mark, [subject], CROWD) => {
                return !matches!(interruption, Some(Interruption::Lost));
            }
            // A server without a leader never answers the first copy.
            () = pause => continue,
        }
        sleep(pauses.next().unwrap_or_default()).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports by panicking")]
mod tests {
    use std::sync::mpsc;

    use super::super::scripted;
    use super::*;
    use crate::store::Deadline;

    /// The server has no meta leader, and executes the second deletion.
    #[tokio::test]
    async fn rejected_deletion_is_sent_again() {
        let (sent, requests) = mpsc::channel();
        let mut answers =
            [r#"{"error":{"code":503,"err_code":10008}}"#, r#"{"success":true}"#].iter();
        let link = scripted::link(move |subject| {
            let _ = sent.send(subject.to_owned());
            answers.next().map_or_else(String::new, |answer| (*answer).to_owned())
        })
        .await;
        let mark = link.mark("drop").unwrap();
        assert!(delete(&link, mark, "$JS.API.CONSUMER.DELETE.KV_s.c").await);
        assert_eq!(requests.try_iter().count(), 2);
    }

    /// The client reports the end of the connection only after the deletion has been sent.
    #[tokio::test]
    async fn deletion_on_a_broken_connection_is_sent_again() {
        let (sent, requests) = mpsc::channel();
        let link = scripted::link(move |subject| {
            let _ = sent.send(subject.to_owned());
            r#"{"success":true}"#.to_owned()
        })
        .await;
        let mark = link.mark("drop").unwrap();
        link.events.on_event(&async_nats::Event::Disconnected);
        delete_in_time(&link, mark, "$JS.API.CONSUMER.DELETE.KV_s.c").await;
        assert_eq!(requests.try_iter().count(), 2);
    }

    /// A cluster that is slow to create consumers would get more deletions than it can execute.
    #[tokio::test]
    async fn deletion_on_a_slow_server_is_sent_once() {
        let (sent, requests) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let link = scripted::link(move |subject| {
            let _ = sent.send(subject.to_owned());
            let _ = released.recv();
            r#"{"success":true}"#.to_owned()
        })
        .await;
        link.pace().abandoned(Duration::from_secs(10));
        let mark = link.mark("drop").unwrap();
        let deleted = delete(&link, mark, "$JS.API.CONSUMER.DELETE.KV_s.c");
        // Without the pace of creations, a second copy follows after 250 to 500 ms.
        assert!(timeout_at(Instant::now() + Duration::from_secs(1), deleted).await.is_none());
        drop(release);
        let deadline = Deadline::after(Deadline::DEFAULT);
        // Everything that the deletion has sent precedes this request.
        link.request("watch", "end", Bytes::new(), deadline).answer().await.unwrap();
        assert_eq!(requests.try_iter().filter(|subject| subject.contains("DELETE")).count(), 1);
    }
}
