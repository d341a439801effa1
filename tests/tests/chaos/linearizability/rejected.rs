//! Histories made by hand: some that the checker must reject, and similar ones that it must accept.

use std::time::Duration;

use crate::linearizability::check::{Question, Verdict, judge};
use crate::linearizability::history::{End, History};
use crate::linearizability::register::{Answer, Known, Operation};
use Answer::{Found, Mismatch, Written};
use Operation::{Create, Delete, Read, Swap};

/// A sequence of calls of several clients, as a test sets it.
#[derive(Default)]
struct Story(History);

impl Story {
    fn begin(&mut self, client: usize, operation: Operation) -> usize {
        self.0.begin(client, operation, Duration::ZERO)
    }

    fn end(&mut self, call: usize, end: End) {
        self.0.end(call, end, Duration::ZERO);
    }

    /// Adds a call without concurrent events.
    fn call(mut self, client: usize, operation: Operation, answer: Answer) -> Self {
        let call = self.begin(client, operation);
        self.end(call, End::Told(answer));
        self
    }

    /// Adds a call with an unknown outcome.
    fn open(mut self, client: usize, operation: Operation) -> Self {
        let call = self.begin(client, operation);
        self.end(call, End::Open);
        self
    }

    /// Adds several concurrent calls.
    fn together<const N: usize>(mut self, calls: [(usize, Operation, Answer); N]) -> Self {
        let begun =
            calls.map(|(client, operation, answer)| (self.begin(client, operation), answer));
        for (call, answer) in begun {
            self.end(call, End::Told(answer));
        }
        self
    }

    fn not_done(mut self, client: usize, operation: Operation) -> Self {
        let call = self.begin(client, operation);
        self.end(call, End::NotDone);
        self
    }

    #[track_caller]
    fn accepted(self, question: Question) -> Self {
        assert_eq!(judge(&self.0, question), Verdict::Linearizable, "{}", self.0);
        self
    }

    #[track_caller]
    fn rejected(self, question: Question) -> Self {
        assert_eq!(judge(&self.0, question), Verdict::Not, "{}", self.0);
        self
    }

    /// Rejected for every question.
    #[track_caller]
    fn always_rejected(self) {
        let all = [Question::EVERYTHING, Question::READS, Question::MISMATCHES, Question::LEAST];
        all.into_iter().fold(self, Self::rejected);
    }

    /// Accepted for every question.
    #[track_caller]
    fn always_accepted(self) {
        self.accepted(Question::EVERYTHING);
    }

    /// Rejected only because of the results of reads.
    #[track_caller]
    fn rejected_for_its_reads(self) {
        self.rejected(Question::READS).accepted(Question::MISMATCHES);
    }

    /// Rejected only because of a mismatch.
    #[track_caller]
    fn rejected_for_its_mismatches(self) {
        self.rejected(Question::MISMATCHES).accepted(Question::READS);
    }
}

fn known(version: u64, write: usize) -> Known {
    Known { version, write }
}

/// Returns a key with one value: write 0 with version 1.
fn created() -> Story {
    Story::default().call(0, Create { write: 0 }, Written(1))
}

fn swap(version: u64, expected: usize, write: usize) -> Operation {
    Swap { expected: known(version, expected), write }
}

fn delete(version: u64, expected: usize, write: usize) -> Operation {
    Delete { expected: known(version, expected), write }
}

#[test]
fn one_after_the_other() {
    created()
        .call(1, Read, Found(Some(known(1, 0))))
        .call(1, swap(1, 0, 1), Written(2))
        .call(0, swap(1, 0, 2), Mismatch)
        .call(0, delete(2, 1, 3), Written(5))
        .call(1, Read, Found(None))
        // A tombstone is an entry too.
        .call(1, swap(5, 3, 4), Written(6))
        .call(0, Create { write: 5 }, Mismatch)
        .always_accepted();
}

#[test]
fn a_stale_read_after_an_acknowledged_swap() {
    let story =
        created().call(0, swap(1, 0, 1), Written(2)).call(1, Read, Found(Some(known(1, 0))));
    story.rejected_for_its_reads();
    let story =
        created().call(0, delete(1, 0, 1), Written(2)).call(1, Read, Found(Some(known(1, 0))));
    story.rejected_for_its_reads();
    // Either answer is right for concurrent calls.
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, Read, Found(Some(known(1, 0))))])
        .always_accepted();
}

#[test]
fn a_read_of_what_was_not_written_yet() {
    created()
        .call(1, Read, Found(Some(known(2, 1))))
        .call(0, swap(1, 0, 1), Written(2))
        .always_rejected();
    created().call(1, Read, Found(Some(known(2, 0)))).always_rejected();
}

#[test]
fn reads_that_go_back() {
    // Both are concurrent with the swap, and the old value comes after the new one.
    let mut story = created();
    let swapping = story.begin(0, swap(1, 0, 1));
    let mut story =
        story.call(1, Read, Found(Some(known(2, 1)))).call(2, Read, Found(Some(known(1, 0))));
    story.end(swapping, End::Told(Written(2)));
    story.rejected_for_its_reads();
}

#[test]
fn two_swaps_from_the_same_version() {
    created()
        .call(0, swap(1, 0, 1), Written(2))
        .call(1, swap(1, 0, 2), Written(3))
        .always_rejected();
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, swap(1, 0, 2), Written(3))])
        .always_rejected();
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, delete(1, 0, 2), Written(3))])
        .always_rejected();
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, swap(1, 0, 2), Mismatch)])
        .always_accepted();
}

#[test]
fn an_acknowledged_write_that_is_lost() {
    // Seen only by the next swap, which expects the earlier entry.
    created()
        .call(0, swap(1, 0, 1), Written(2))
        .call(1, swap(1, 0, 2), Written(3))
        .call(1, Read, Found(Some(known(3, 2))))
        .always_rejected();
    created().call(0, Create { write: 1 }, Written(2)).always_rejected();
    // The key is created again as if it had never existed.
    created().call(1, Create { write: 1 }, Written(1)).always_rejected();
    // The same if only a rejected write reveals it.
    created()
        .call(0, swap(1, 0, 1), Written(2))
        .call(1, swap(2, 1, 2), Mismatch)
        .rejected_for_its_mismatches();
}

#[test]
fn a_create_over_a_live_value() {
    created().call(1, Create { write: 1 }, Written(2)).always_rejected();
    Story::default()
        .together([(0, Create { write: 0 }, Written(1)), (1, Create { write: 1 }, Written(2))])
        .always_rejected();
    created()
        .call(0, delete(1, 0, 1), Written(2))
        .call(1, Create { write: 2 }, Written(3))
        .always_accepted();
}

#[test]
fn a_create_that_is_rejected_over_nothing() {
    Story::default().call(0, Create { write: 0 }, Mismatch).rejected_for_its_mismatches();
    created()
        .call(0, delete(1, 0, 1), Written(2))
        .call(1, Create { write: 2 }, Mismatch)
        .rejected_for_its_mismatches();
}

#[test]
fn a_swap_that_is_rejected_although_it_fits() {
    created().call(1, swap(1, 0, 1), Mismatch).rejected_for_its_mismatches();
    // A concurrent write explains it, unless that was rejected as well.
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, swap(1, 0, 2), Mismatch)])
        .always_accepted();
    created()
        .together([(0, swap(1, 0, 1), Mismatch), (1, swap(1, 0, 2), Mismatch)])
        .rejected_for_its_mismatches();
}

#[test]
fn a_mismatch_whose_reason_cannot_be_read_yet() {
    // This happens on a cluster: the leader rejects a write because of another one that its
    // followers do not have yet.
    let mut story = created();
    let deleting = story.begin(0, delete(1, 0, 1));
    let mut story = story.call(1, swap(1, 0, 2), Mismatch).call(1, Read, Found(Some(known(1, 0))));
    story.end(deleting, End::Told(Written(2)));
    story.rejected(Question::EVERYTHING).accepted(Question::READS).accepted(Question::MISMATCHES);
}

#[test]
fn a_mismatch_whose_reason_is_lost() {
    // The leader that rejected it is replaced before its followers have the other write.
    created()
        .open(0, swap(1, 0, 1))
        .call(1, swap(1, 0, 2), Mismatch)
        .call(1, swap(1, 0, 3), Written(2))
        .rejected_for_its_mismatches();
}

#[test]
fn versions_that_go_back() {
    Story::default()
        .call(0, Create { write: 0 }, Written(5))
        .call(0, swap(5, 0, 1), Written(4))
        .always_rejected();
}

#[test]
fn unacknowledged_write_may_happen_late_or_never() {
    // It never takes effect.
    created().open(0, swap(1, 0, 1)).call(1, swap(1, 0, 2), Written(2)).always_accepted();
    // It takes effect at once.
    created().open(0, swap(1, 0, 1)).call(1, Read, Found(Some(known(2, 1)))).always_accepted();
    // It takes effect later, while the same client has continued.
    created()
        .open(0, swap(1, 0, 1))
        .call(0, Read, Found(Some(known(1, 0))))
        .call(1, swap(1, 0, 2), Mismatch)
        .call(0, swap(2, 1, 3), Written(3))
        .always_accepted();
    // Two writes that exclude each other cannot both take effect.
    created()
        .open(0, swap(1, 0, 1))
        .open(1, swap(1, 0, 2))
        .call(2, Read, Found(Some(known(2, 1))))
        .call(2, Read, Found(Some(known(3, 2))))
        .always_rejected();
    // It cannot take effect before it was requested.
    created().call(1, swap(1, 0, 2), Mismatch).open(0, swap(1, 0, 1)).rejected_for_its_mismatches();
    // It cannot take effect twice.
    created()
        .open(0, swap(1, 0, 1))
        .call(1, Read, Found(Some(known(2, 1))))
        .call(1, swap(2, 1, 2), Written(3))
        .call(1, Read, Found(Some(known(4, 1))))
        .always_rejected();
}

#[test]
fn rejected_write_did_not_happen() {
    created().not_done(0, swap(1, 0, 1)).call(1, swap(1, 0, 2), Written(2)).always_accepted();
    created().not_done(0, swap(1, 0, 1)).call(1, Read, Found(Some(known(2, 1)))).always_rejected();
    created()
        .not_done(0, swap(1, 0, 1))
        .call(1, swap(1, 0, 2), Mismatch)
        .rejected_for_its_mismatches();
}
