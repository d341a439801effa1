//! Work of the layers above a store that has to happen before its connection is shut down.

use std::sync::{Arc, PoisonError, Weak};

use futures_core::future::BoxFuture;
use futures_util::future::join_all;

use super::Deadline;

/// A layer that has something to finish while the connection still works.
pub(crate) trait ShutdownHook: Send + Sync {
    /// Finishes by the deadline.
    fn shut_down(self: Arc<Self>, deadline: Deadline) -> BoxFuture<'static, ()>;
}

/// The hooks of one connection. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct ShutdownHooks(Arc<Hooks>);

#[derive(Default)]
struct Hooks {
    registered: std::sync::Mutex<Vec<Weak<dyn ShutdownHook>>>,
    /// Held while the hooks run, so that a second shutdown waits for the first.
    running: tokio::sync::Mutex<()>,
}

impl ShutdownHooks {
    /// Registers a hook. It runs once, unless it was dropped before.
    pub(crate) fn add(&self, hook: Weak<dyn ShutdownHook>) {
        let mut registered = self.0.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.retain(|hook| hook.strong_count() > 0);
        registered.push(hook);
    }

    /// Runs all hooks at once, and stops waiting for them at the deadline.
    ///
    /// Cancel safe: a hook that has begun may be cut off, and does not run again.
    pub(crate) async fn run(&self, deadline: Deadline) {
        let all = async {
            let _running = self.0.running.lock().await;
            let registered = {
                let mut registered = self.0.registered.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *registered)
            };
            let hooks = registered.iter().filter_map(Weak::upgrade);
            join_all(hooks.map(|hook| hook.shut_down(deadline))).await;
        };
        let _ = tokio::time::timeout_at(deadline.instant(), all).await;
    }
}
