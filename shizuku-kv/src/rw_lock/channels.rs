//! The channels to the running coordinators of a store's handle.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::command::Command;
use crate::store::Key;

/// The runtime of a coordinator, and the key of its record.
pub(super) type CoordinatorId = (runtime::Id, Key);

#[derive(Debug, Default)]
pub(super) struct Channels(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    senders: HashMap<CoordinatorId, UnboundedSender<Command>>,
    /// Whether the connection is being shut down. Later commands are rejected.
    is_closed: bool,
}

impl Channels {
    /// Sends a command to a coordinator. If no such coordinator runs, returns the receiver of a new
    /// channel, for a coordinator that the caller starts.
    pub(super) fn send(
        &self,
        id: &CoordinatorId,
        command: Command,
    ) -> (UnboundedSender<Command>, Option<UnboundedReceiver<Command>>) {
        // Sent under the mutex under which a coordinator checks for the last time before it ends.
        let mut open = self.lock();
        if open.is_closed {
            command.reject_closed();
            return (unbounded_channel().0, None);
        }
        let command = match open.senders.get(id) {
            None => command,
            Some(sender) => match sender.send(command) {
                Ok(()) => return (sender.clone(), None),
                // The runtime of the coordinator has ended.
                Err(unsent) => unsent.0,
            },
        };
        open.senders.retain(|_, sender| !sender.is_closed());
        let (sender, commands) = unbounded_channel();
        // Succeeds, because the receiver exists.
        let _ = sender.send(command);
        open.senders.insert(id.clone(), sender.clone());
        (sender, Some(commands))
    }

    /// Removes an idle coordinator, unless a command has just arrived. Returns whether it was
    /// removed.
    pub(super) fn retire(
        &self,
        id: &CoordinatorId,
        commands: &mut UnboundedReceiver<Command>,
    ) -> bool {
        let mut open = self.lock();
        let is_over = commands.is_empty();
        if is_over {
            open.senders.remove(id);
            commands.close();
        }
        is_over
    }

    /// Rejects later commands. Returns the channels to the coordinators that run.
    pub(super) fn close(&self) -> Vec<UnboundedSender<Command>> {
        let mut open = self.lock();
        open.is_closed = true;
        open.senders.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
