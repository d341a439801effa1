//! Turns of tasks: an operation that never waits still yields to other tasks.

use std::cell::Cell;
use std::future::poll_fn;
use std::mem;
#[cfg(feature = "memory")]
use std::task::Context;
use std::task::Poll;

/// Number of successive answers after which a task yields.
const BUDGET: u32 = 64;

thread_local! {
    /// Number of answers on this thread since a task last yielded, for all of its tasks. No task
    /// gets more than its share, and some yield early.
    static ANSWERS: Cell<u32> = const { Cell::new(0) };
}

/// Counts an answer without a wait, and yields after many of them. Otherwise an operation that is
/// always ready would block its thread for as long as a loop calls it.
pub(in crate::backend) async fn share() {
    if is_turn_over() {
        yield_once().await;
    }
}

/// Like [`share`], for a caller that polls again after `Pending`.
#[cfg(feature = "memory")]
pub(in crate::backend) fn poll_share(context: &Context<'_>) -> Poll<()> {
    if !is_turn_over() {
        return Poll::Ready(());
    }
    context.waker().wake_by_ref();
    Poll::Pending
}

/// Counts an answer. Returns whether it was the last one of a turn.
fn is_turn_over() -> bool {
    let answers = ANSWERS.get() + 1;
    ANSWERS.set(answers % BUDGET);
    answers == BUDGET
}

/// Lets other tasks run before continuing.
pub(in crate::backend) async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
