//! The channels to the running coordinators of a store's handle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::command::{Command, Rejection, Reply};
use super::driver::{Answer, Driver, Turn};
use crate::store::Key;

/// The runtime of a coordinator, and the key of its record.
pub(super) type CoordinatorId = (runtime::Id, Key);

/// The channel to a coordinator, and its driver.
#[derive(Clone, Debug)]
pub(super) struct CoordinatorHandle {
    commands: UnboundedSender<Command>,
    driver: Arc<Driver>,
}

impl CoordinatorHandle {
    /// Sends a command, unless the coordinator has ended. The background task receives it.
    pub(super) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Starts the background task of a new coordinator.
    pub(super) fn start(&self, runtime: &runtime::Handle) {
        self.driver.start(runtime);
    }

    /// Sends a request. Awaiting the answer makes progress with it. The answer is an error if the
    /// coordinator has ended.
    pub(super) fn request<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Answer<Result<T, Rejection>> {
        let (reply, receiver) = oneshot::channel();
        let turn = self.driver.begin();
        let _ = self.commands.send(command(reply));
        Answer::new(Some(turn), receiver)
    }
}

#[derive(Debug, Default)]
pub(super) struct Channels(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    coordinators: HashMap<CoordinatorId, CoordinatorHandle>,
    /// Whether the connection is being shut down. Later commands are rejected.
    is_closed: bool,
}

/// A command that was sent in the turn of the caller.
pub(super) struct Sent {
    pub(super) coordinator: CoordinatorHandle,
    pub(super) turn: Turn,
    /// Whether the coordinator was created for the command, and is to be started.
    pub(super) is_new: bool,
}

impl Channels {
    /// Sends a command to a coordinator, in the turn of the caller. If no such coordinator runs,
    /// creates one with `create`. Returns `None` if the command was rejected.
    pub(super) fn send(
        &self,
        id: &CoordinatorId,
        command: Command,
        create: impl FnOnce(UnboundedReceiver<Command>) -> Arc<Driver>,
    ) -> Option<Sent> {
        // Dropped after the mutex is unlocked, because the drop wakes tasks and runs code of other
        // crates.
        let (mut ended_turn, mut ended) = (None, Vec::new());
        // Sent under the mutex under which a coordinator checks for the last time before it ends.
        let mut open = self.lock();
        if open.is_closed {
            command.reject_closed();
            return None;
        }
        let command = match open.coordinators.get(id) {
            None => command,
            Some(coordinator) => {
                let turn = coordinator.driver.begin();
                match coordinator.commands.send(command) {
                    Ok(()) => {
                        return Some(Sent {
                            coordinator: coordinator.clone(),
                            turn,
                            is_new: false,
                        });
                    }
                    // The runtime of the coordinator has ended.
                    Err(unsent) => {
                        ended_turn = Some(turn);
                        unsent.0
                    }
                }
            }
        };
        let is_ended = |coordinator: &CoordinatorHandle| coordinator.commands.is_closed();
        ended.extend(open.coordinators.extract_if(|_, coordinator| is_ended(coordinator)));
        let (commands, receiver) = unbounded_channel();
        // Succeeds, because the receiver exists.
        let _ = commands.send(command);
        let coordinator = CoordinatorHandle { commands, driver: create(receiver) };
        open.coordinators.insert(id.clone(), coordinator.clone());
        drop(open);
        drop((ended_turn, ended));
        Some(Sent { turn: coordinator.driver.begin(), coordinator, is_new: true })
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
            open.coordinators.remove(id);
            commands.close();
        }
        is_over
    }

    /// Rejects later commands. Returns the coordinators that run.
    pub(super) fn close(&self) -> Vec<CoordinatorHandle> {
        let mut open = self.lock();
        open.is_closed = true;
        open.coordinators.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
