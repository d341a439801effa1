//! Decides whether a history can have happened one operation after the other, with stateright's
//! tester.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

use crate::linearizability::history::{Call, End, History};
use crate::linearizability::register::{Answer, Operation, Register};

/// Timeout for one history. Most take milliseconds, but the search is exponential if it finds
/// nothing.
const PATIENCE: Duration = Duration::from_secs(20);

/// The requirements on a history besides its acknowledged writes, which have to be linearizable in
/// any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) reads: Reads,
    /// True if mismatches must be linearizable: the entry did not match at some time during the
    /// operation.
    pub(crate) mismatches: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Reads are linearizable too.
    Strict,
    /// Each returns an entry that existed at some time before its end, possibly long before.
    MayBeOld,
}

impl Question {
    pub(crate) const EVERYTHING: Self = Self { reads: Reads::Strict, mismatches: true };
    /// A mismatch can be caused by a write that is not readable yet.
    pub(crate) const READS: Self = Self { reads: Reads::Strict, mismatches: false };
    pub(crate) const MISMATCHES: Self = Self { reads: Reads::MayBeOld, mismatches: true };
    pub(crate) const LEAST: Self = Self { reads: Reads::MayBeOld, mismatches: false };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    Not,
    /// The search did not end in time.
    Undecided,
}

/// Decides whether a history is linearizable.
pub(crate) fn judge(history: &History, question: Question) -> Verdict {
    let tester = tester(history, question);
    let (sender, verdict) = mpsc::channel();
    // Runs on a thread that can be left behind.
    std::thread::spawn(move || sender.send(tester.is_consistent()));
    match verdict.recv_timeout(PATIENCE) {
        Ok(true) => Verdict::Linearizable,
        Ok(false) => Verdict::Not,
        Err(_) => Verdict::Undecided,
    }
}

/// Returns the shortest beginning of a history that is not linearizable, for debugging.
pub(crate) fn first_wrong(history: &History, question: Question) -> History {
    let ticks = history.ticks();
    let beginnings = ticks.into_iter().map(|tick| history.until(tick));
    beginnings
        .into_iter()
        .find(|beginning| judge(beginning, question) == Verdict::Not)
        .unwrap_or_else(|| history.clone())
}

/// A client that makes one call after the other. The tester tries threads of a lower rank first.
type Thread = (Rank, usize);

/// Order in which the tester tries the next call. It affects only the time of the search, and that
/// much. Calls that change nothing are best taken as early as they fit. Calls with unknown outcomes
/// are best taken only if nothing else fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    OldRead,
    Told,
    Open,
}

fn tester(history: &History, question: Question) -> LinearizabilityTester<Thread, Register> {
    let mut old_reads: Vec<(usize, Answer)> = Vec::new();
    let mut calls = Vec::new();
    for call in &history.calls {
        match (call.operation, call.ended, question.reads) {
            (_, Some((_, End::Told(Answer::Mismatch))), _) if !question.mismatches => {}
            // Nothing happened, and a read without a result says nothing.
            (_, Some((_, End::NotDone)), _) | (Operation::Read, None | Some((_, End::Open)), _) => {
            }
            (Operation::Read, Some((tick, End::Told(answer))), Reads::MayBeOld) => {
                old_reads.push((tick, answer));
            }
            _ => calls.push(*call),
        }
    }
    // The first one makes later ones of the same result redundant.
    old_reads.sort_by_key(|(tick, _)| *tick);
    let mut seen = Vec::new();
    old_reads.retain(|(_, answer)| {
        let is_first = !seen.contains(answer);
        seen.push(*answer);
        is_first
    });

    // The steps for the tester, each with its position in the order of events. An operation that
    // stays open has no end, and its client continues as another thread.
    let mut steps: Vec<(usize, Thread, Step)> = Vec::new();
    for (number, (tick, answer)) in old_reads.into_iter().enumerate() {
        let thread = (Rank::OldRead, number);
        // Starts before all other events, so that any earlier entry is a valid answer.
        steps.push((0, thread, Step::Invoke(Operation::Read)));
        steps.push((tick, thread, Step::Return(answer)));
    }
    for (number, calls) in threads(&calls).into_iter().enumerate() {
        let is_open = calls.last().is_some_and(|call| call.end() == End::Open);
        let thread = (if is_open { Rank::Open } else { Rank::Told }, number);
        for call in calls {
            steps.push((call.began, thread, Step::Invoke(call.operation)));
            if let Some((tick, End::Told(answer))) = call.ended {
                steps.push((tick, thread, Step::Return(answer)));
            }
        }
    }
    steps.sort_by_key(|(tick, thread, _)| (*tick, *thread));

    let mut tester = LinearizabilityTester::new(Register::default());
    for (_, thread, step) in steps {
        let taken = match step {
            Step::Invoke(operation) => tester.on_invoke(thread, operation).map(drop),
            Step::Return(answer) => tester.on_return(thread, answer).map(drop),
        };
        taken.expect("one call of a client at a time");
    }
    tester
}

enum Step {
    Invoke(Operation),
    Return(Answer),
}

/// Splits the calls of each client into threads. After an open call the client is another thread.
fn threads(calls: &[Call]) -> Vec<Vec<Call>> {
    let mut threads: Vec<Vec<Call>> = Vec::new();
    let mut current: HashMap<usize, usize> = HashMap::new();
    for call in calls {
        let thread = *current.entry(call.client).or_insert_with(|| {
            threads.push(Vec::new());
            threads.len() - 1
        });
        threads[thread].push(*call);
        if call.end() == End::Open {
            current.remove(&call.client);
        }
    }
    threads
}
