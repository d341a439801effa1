//! Work for the writer thread: queued, withdrawn if its deadline passes first, and answered after
//! the commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::oneshot;

use super::failure::Failure;
use super::transaction::Transaction;
use crate::store::{KvError, KvResult};

const QUEUED: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// The state of a queued job, shared by its caller and the writer thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Ticket(Arc<AtomicU8>);

impl Ticket {
    fn change(&self, to: u8) -> bool {
        self.0.compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes the job, to be done now. Returns `false` if it was withdrawn.
    fn take(&self) -> bool {
        self.change(TAKEN)
    }

    /// Withdraws the job, which then never runs. Returns `false` if it was taken before.
    pub(super) fn withdraw(&self) -> bool {
        self.change(WITHDRAWN)
    }

    fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Acquire) == WITHDRAWN
    }
}

/// A caller's wait for a job. Dropping it withdraws the job if it was not taken.
pub(super) struct Wait<T> {
    pub(super) ticket: Ticket,
    pub(super) answer: oneshot::Receiver<KvResult<T>>,
}

impl<T> Drop for Wait<T> {
    fn drop(&mut self) {
        self.ticket.withdraw();
    }
}

/// The outcome of the commit of a job.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome<'a> {
    Committed,
    /// Nothing of it has happened.
    Failed(&'a Failure),
    /// It may have happened.
    Unknown(&'a Failure),
}

/// Work for the writer thread.
pub(super) trait Job: Send {
    /// Takes the job. Returns `false` if it was withdrawn.
    fn take(&self) -> bool;

    fn is_withdrawn(&self) -> bool;

    /// Returns the approximate number of bytes that the job writes.
    fn bytes(&self) -> usize;

    /// Returns whether the job gets a transaction of its own, which is not committed if the job is
    /// rejected.
    fn is_alone(&self) -> bool;

    /// Does the work. Returns whether the job was rejected.
    ///
    /// # Errors
    /// Returns the failure of the whole transaction.
    fn run(&mut self, transaction: &mut Transaction<'_>) -> Result<bool, Failure>;

    /// Answers the caller.
    fn finish(self: Box<Self>, outcome: Outcome<'_>);
}

/// A job that was made from functions.
pub(super) struct NewJob<W, E> {
    /// Does the work within a transaction.
    pub(super) work: W,
    /// Returns the error for a failed commit.
    pub(super) error: E,
    pub(super) bytes: usize,
    pub(super) is_alone: bool,
}

struct Queued<T, W, E> {
    job: NewJob<W, E>,
    ticket: Ticket,
    result: Option<KvResult<T>>,
    answer: oneshot::Sender<KvResult<T>>,
}

impl<W, E> NewJob<W, E> {
    /// Returns the job for the queue, and the wait for its answer.
    pub(super) fn queued<T>(self) -> (Box<dyn Job>, Wait<T>)
    where
        T: Send + 'static,
        W: FnMut(&mut Transaction<'_>) -> Result<KvResult<T>, Failure> + Send + 'static,
        E: Fn(Outcome<'_>) -> KvError + Send + 'static,
    {
        let (answer, receiver) = oneshot::channel();
        let ticket = Ticket::default();
        let wait = Wait { ticket: ticket.clone(), answer: receiver };
        (Box::new(Queued { job: self, ticket, result: None, answer }), wait)
    }
}

impl<T, W, E> Job for Queued<T, W, E>
where
    T: Send,
    W: FnMut(&mut Transaction<'_>) -> Result<KvResult<T>, Failure> + Send,
    E: Fn(Outcome<'_>) -> KvError + Send,
{
    fn take(&self) -> bool {
        self.ticket.take()
    }

    fn is_withdrawn(&self) -> bool {
        self.ticket.is_withdrawn()
    }

    fn bytes(&self) -> usize {
        self.job.bytes
    }

    fn is_alone(&self) -> bool {
        self.job.is_alone
    }

    fn run(&mut self, transaction: &mut Transaction<'_>) -> Result<bool, Failure> {
        let result = (self.job.work)(transaction)?;
        let is_rejected = result.is_err();
        self.result = Some(result);
        Ok(is_rejected)
    }

    fn finish(self: Box<Self>, outcome: Outcome<'_>) {
        let Self { job, result, answer, .. } = *self;
        let result = match (outcome, result) {
            (Outcome::Committed, Some(result)) => result,
            (outcome, _) => Err((job.error)(outcome)),
        };
        // The caller may have given up.
        let _ = answer.send(result);
    }
}
