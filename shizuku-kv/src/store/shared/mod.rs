//! One watch for many: subscriptions to a store that share what they read.
//!
//! A [`Hub`] belongs to a store's handles. It has a few [`Channel`]s, each with one watch in a task of its own, and what
//! that watch has delivered. A [`Subscription`] joins a channel whose scope covers its own and gets the state from
//! there; else it makes one. With more than a few, a wider one is made, which takes over the others once it has caught
//! up. A channel without subscriptions ends, and its watch with it.
//!
//! A subscription holds at most one update for each key, the newest: one that is not read stalls nobody, and grows no
//! further than its scope.
//!
//! Locks are taken in the order hub, channel, mailbox, and never held across an await.

mod channel;
mod mailbox;
mod scopes;

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use channel::Channel;
use mailbox::Mailbox;
pub(crate) use mailbox::News;

use super::{Store, WatchScope};

/// How many channels there are before they are made into a wider one.
const CHANNELS: usize = 8;

/// The channels of one store.
#[derive(Debug, Default)]
pub(super) struct Hub {
    channels: Mutex<Vec<Arc<Channel>>>,
}

impl Hub {
    /// Subscribes to a scope: what is there, [`News::CaughtUp`], then every change. In a tokio runtime.
    pub(super) fn subscribe(self: &Arc<Self>, store: &Store, scope: WatchScope) -> Subscription {
        let mailbox = Arc::new(Mailbox::new(scope));
        let scope = mailbox.scope();
        let mut channels = lock(&self.channels);
        channels.retain(|channel| !channel.has_ended());
        let is_joined =
            channels.iter().any(|channel| scopes::covers(channel.scope(), scope) && channel.join(&mailbox));
        if !is_joined {
            let (scope, replaced) = if channels.len() < CHANNELS {
                (scope.clone(), Vec::new())
            } else {
                let all = channels.iter().map(|channel| channel.scope()).chain([scope]);
                (scopes::widened(all), channels.clone())
            };
            let channel = Channel::new(scope);
            channel.join(&mailbox);
            channel.start(store, Arc::downgrade(self), replaced);
            channels.push(channel);
        }
        Subscription { mailbox, hub: Arc::clone(self) }
    }

    /// Moves the subscriptions of other channels to one that covers them and has caught up.
    fn replace(&self, replaced: &[Arc<Channel>], by: &Channel) {
        let mut channels = lock(&self.channels);
        // It may have been left meanwhile, and end at its next step.
        if !channels.iter().any(|channel| std::ptr::eq(Arc::as_ptr(channel), by)) {
            return;
        }
        for channel in replaced {
            channel.move_to(by);
        }
        channels.retain(|channel| !replaced.iter().any(|replaced| Arc::ptr_eq(replaced, channel)));
    }

    fn leave(&self, mailbox: &Arc<Mailbox>) {
        let mut channels = lock(&self.channels);
        channels.retain(|channel| {
            let is_left = channel.leave(mailbox) && channel.is_empty();
            if is_left {
                channel.end();
            }
            !is_left
        });
    }
}

/// What one subscriber hears. Dropping it ends it, and the watch behind it where it was the last.
pub(crate) struct Subscription {
    mailbox: Arc<Mailbox>,
    hub: Arc<Hub>,
}

impl Subscription {
    /// What is new; `None` when nothing follows any more. Dropping the future is safe: nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<News> {
        poll_fn(|cx| self.mailbox.poll(cx)).await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.leave(&self.mailbox);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("scope", self.mailbox.scope()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
