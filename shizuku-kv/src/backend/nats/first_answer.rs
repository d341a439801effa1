//! The first request on each new connection. The connection counts as up once the answer has
//! arrived (ADR 0067).

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::connection::State;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::link::{Interruption, Link};
use super::link_events::{LinkEvents, STATE_POLL};
use super::pending::Copies;
use crate::store::KvResult;
use crate::store::timer::timeout_at;

/// Timeout for the first answer. A server that rejects a client does so at once.
const PATIENCE: Duration = Duration::from_millis(250);

/// Interval of polling the client's state until the server has answered on a connection.
const POLL: Duration = Duration::from_millis(50);

/// Sends a request on each new connection, until the link is dropped or its runtime ends.
pub(super) fn start(link: &Arc<Link>, events: LinkEvents) {
    let task = tokio::spawn(follow(Arc::downgrade(link), events, link.session.recheck()));
    link.session.set_task(task.abort_handle());
}

async fn follow(link: Weak<Link>, events: LinkEvents, recheck: Arc<Notify>) {
    let mut changes = events.changes();
    loop {
        let is_answered = {
            let Some(link) = link.upgrade() else { return };
            if link.is_over() {
                return;
            }
            let (client, session) = (link.client(), &link.session);
            let number = session.number();
            let is_connected =
                || client.connection_state() == State::Connected && session.number() == number;
            if !session.is_answered()
                && is_connected()
                && link.probe(PATIENCE).await
                && is_connected()
            {
                let server = client.server_info();
                // The state is stored before the event is sent, so that no operation waits for a
                // lost event.
                session.answered(number);
                events.answered(&server.server_name, &server.version);
                continue;
            }
            session.is_answered()
        };
        let wait = async {
            tokio::select! {
                alive = changes.next() => alive,
                () = recheck.notified() => true,
            }
        };
        if is_answered {
            if !wait.await {
                return;
            }
        } else {
            // The client sends the event before it changes its own state.
            let _ = timeout(POLL, wait).await;
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Link {
    /// Waits for the server's first answer on a new connection.
    ///
    /// # Errors
    /// Returns [`KvError::Unauthorized`] or [`KvError::Unavailable`] if the server ends the
    /// connection instead, and the denial if the server denies the subscription to answers.
    ///
    /// [`KvError::Unauthorized`]: crate::KvError::Unauthorized
    /// [`KvError::Unavailable`]: crate::KvError::Unavailable
    pub(super) async fn first_answer(&self, operation: &'static str) -> KvResult<()> {
        let mut state = self.events.subscribe();
        loop {
            state.mark_unchanged();
            if self.is_connected() {
                return self.mark(operation).map(|_| ());
            }
            if let Some(failure) = self.failure() {
                return Err(failure.into_error(operation));
            }
            let _ = timeout_at(Instant::now() + STATE_POLL, state.changed()).await;
        }
    }

    /// Sends a request that every user may send. Waits for the answer, for a denial of the request
    /// or of the subscription to the answer, or until `patience` has passed. Returns whether the
    /// connection still exists.
    ///
    /// A denial of the subscription to answers arrives before any answer, because a server
    /// processes the messages of a client in order.
    async fn probe(&self, patience: Duration) -> bool {
        let mark = match self.mark("connect") {
            Ok(mark) => mark,
            Err(_) => return !self.is_hearing(),
        };
        let subject = self.space().api("INFO");
        let mut copies = Copies::default();
        let ask = async {
            match self.requests().send(&mut copies, subject.clone(), Bytes::new()).await {
                Ok(()) => copies.answer().await.is_some(),
                Err(_) => false,
            }
        };
        tokio::select! {
            biased;
            answered = ask => return answered,
            interruption = self.interrupted(mark, [&subject]) => {
                return matches!(interruption, Interruption::Denied(_));
            }
            () = crate::store::timer::sleep(patience) => {}
        }
        self.events.silent();
        // An answer may have arrived before that line.
        if let Some(Some(_)) = copies.answer().now_or_never() {
            self.events.heard();
        }
        // A cluster without a majority does not answer, but its streams may.
        true
    }
}
