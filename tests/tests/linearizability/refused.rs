//! Histories made by hand: those that the checker must refuse, and their neighbours that it must not.

use std::time::Duration;

use crate::check::{Question, Verdict, judge};
use crate::history::{End, History};
use crate::register::{Answer, Known, Operation};
use Answer::{Found, Mismatch, Written};
use Operation::{Create, Delete, Read, Swap};

/// Several clients that take turns as a test says.
#[derive(Default)]
struct Story(History);

impl Story {
    fn begin(&mut self, client: usize, operation: Operation) -> usize {
        self.0.begin(client, operation, Duration::ZERO)
    }

    fn end(&mut self, call: usize, end: End) {
        self.0.end(call, end, Duration::ZERO);
    }

    /// A call while which nothing else happens.
    fn call(mut self, client: usize, operation: Operation, answer: Answer) -> Self {
        let call = self.begin(client, operation);
        self.end(call, End::Told(answer));
        self
    }

    /// A call whose outcome nobody knows.
    fn open(mut self, client: usize, operation: Operation) -> Self {
        let call = self.begin(client, operation);
        self.end(call, End::Open);
        self
    }

    /// Several calls at the same time.
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
    fn refused(self, question: Question) -> Self {
        assert_eq!(judge(&self.0, question), Verdict::Not, "{}", self.0);
        self
    }

    /// Whatever is asked.
    #[track_caller]
    fn always_refused(self) {
        let all = [Question::EVERYTHING, Question::READS, Question::MISMATCHES, Question::LEAST];
        all.into_iter().fold(self, Self::refused);
    }

    /// Also where nothing is let pass.
    #[track_caller]
    fn always_accepted(self) {
        self.accepted(Question::EVERYTHING);
    }

    /// Refused because of what reads found, and only because of that.
    #[track_caller]
    fn refused_for_its_reads(self) {
        self.refused(Question::READS).accepted(Question::MISMATCHES);
    }

    /// Refused because of a mismatch, and only because of that.
    #[track_caller]
    fn refused_for_its_mismatches(self) {
        self.refused(Question::MISMATCHES).accepted(Question::READS);
    }
}

fn known(version: u64, write: usize) -> Known {
    Known { version, write }
}

/// A key with one value: write 0 with version 1.
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
    story.refused_for_its_reads();
    let story =
        created().call(0, delete(1, 0, 1), Written(2)).call(1, Read, Found(Some(known(1, 0))));
    story.refused_for_its_reads();
    // At the same time either is right.
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, Read, Found(Some(known(1, 0))))])
        .always_accepted();
}

#[test]
fn a_read_of_what_was_not_written_yet() {
    created()
        .call(1, Read, Found(Some(known(2, 1))))
        .call(0, swap(1, 0, 1), Written(2))
        .always_refused();
    created().call(1, Read, Found(Some(known(2, 0)))).always_refused();
}

#[test]
fn reads_that_go_back() {
    // Both are of the time of the swap, and after the new value comes the old one.
    let mut story = created();
    let swapping = story.begin(0, swap(1, 0, 1));
    let mut story =
        story.call(1, Read, Found(Some(known(2, 1)))).call(2, Read, Found(Some(known(1, 0))));
    story.end(swapping, End::Told(Written(2)));
    story.refused_for_its_reads();
}

#[test]
fn two_swaps_from_the_same_version() {
    created()
        .call(0, swap(1, 0, 1), Written(2))
        .call(1, swap(1, 0, 2), Written(3))
        .always_refused();
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, swap(1, 0, 2), Written(3))])
        .always_refused();
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, delete(1, 0, 2), Written(3))])
        .always_refused();
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, swap(1, 0, 2), Mismatch)])
        .always_accepted();
}

#[test]
fn an_acknowledged_write_that_is_lost() {
    // Seen by nobody but the next swap, which is of what was there before.
    created()
        .call(0, swap(1, 0, 1), Written(2))
        .call(1, swap(1, 0, 2), Written(3))
        .call(1, Read, Found(Some(known(3, 2))))
        .always_refused();
    created().call(0, Create { write: 1 }, Written(2)).always_refused();
    // The key is made again as if it had never been.
    created().call(1, Create { write: 1 }, Written(1)).always_refused();
    // And where only what is refused tells of it.
    created()
        .call(0, swap(1, 0, 1), Written(2))
        .call(1, swap(2, 1, 2), Mismatch)
        .refused_for_its_mismatches();
}

#[test]
fn a_create_over_a_live_value() {
    created().call(1, Create { write: 1 }, Written(2)).always_refused();
    Story::default()
        .together([(0, Create { write: 0 }, Written(1)), (1, Create { write: 1 }, Written(2))])
        .always_refused();
    created()
        .call(0, delete(1, 0, 1), Written(2))
        .call(1, Create { write: 2 }, Written(3))
        .always_accepted();
}

#[test]
fn a_create_that_is_refused_over_nothing() {
    Story::default().call(0, Create { write: 0 }, Mismatch).refused_for_its_mismatches();
    created()
        .call(0, delete(1, 0, 1), Written(2))
        .call(1, Create { write: 2 }, Mismatch)
        .refused_for_its_mismatches();
}

#[test]
fn a_swap_that_is_refused_although_it_fits() {
    created().call(1, swap(1, 0, 1), Mismatch).refused_for_its_mismatches();
    // Another that is on its way explains it, unless it was refused as well.
    created()
        .together([(0, swap(1, 0, 1), Written(2)), (1, swap(1, 0, 2), Mismatch)])
        .always_accepted();
    created()
        .together([(0, swap(1, 0, 1), Mismatch), (1, swap(1, 0, 2), Mismatch)])
        .refused_for_its_mismatches();
}

#[test]
fn a_mismatch_whose_reason_cannot_be_read_yet() {
    // As it happens on a cluster: the leader refuses what does not fit to a write that its followers do not have yet.
    let mut story = created();
    let deleting = story.begin(0, delete(1, 0, 1));
    let mut story = story.call(1, swap(1, 0, 2), Mismatch).call(1, Read, Found(Some(known(1, 0))));
    story.end(deleting, End::Told(Written(2)));
    story.refused(Question::EVERYTHING).accepted(Question::READS).accepted(Question::MISMATCHES);
}

#[test]
fn a_mismatch_whose_reason_is_lost() {
    // The leader that refused it is replaced before its followers have the other write.
    created()
        .open(0, swap(1, 0, 1))
        .call(1, swap(1, 0, 2), Mismatch)
        .call(1, swap(1, 0, 3), Written(2))
        .refused_for_its_mismatches();
}

#[test]
fn versions_that_go_back() {
    Story::default()
        .call(0, Create { write: 0 }, Written(5))
        .call(0, swap(5, 0, 1), Written(4))
        .always_refused();
}

#[test]
fn what_nobody_knows_of_may_happen_late_or_never() {
    // Never.
    created().open(0, swap(1, 0, 1)).call(1, swap(1, 0, 2), Written(2)).always_accepted();
    // At once.
    created().open(0, swap(1, 0, 1)).call(1, Read, Found(Some(known(2, 1)))).always_accepted();
    // Later, while the same client has gone on.
    created()
        .open(0, swap(1, 0, 1))
        .call(0, Read, Found(Some(known(1, 0))))
        .call(1, swap(1, 0, 2), Mismatch)
        .call(0, swap(2, 1, 3), Written(3))
        .always_accepted();
    // Not both of two that exclude each other.
    created()
        .open(0, swap(1, 0, 1))
        .open(1, swap(1, 0, 2))
        .call(2, Read, Found(Some(known(2, 1))))
        .call(2, Read, Found(Some(known(3, 2))))
        .always_refused();
    // Not before it was asked for.
    created().call(1, swap(1, 0, 2), Mismatch).open(0, swap(1, 0, 1)).refused_for_its_mismatches();
    // Not twice.
    created()
        .open(0, swap(1, 0, 1))
        .call(1, Read, Found(Some(known(2, 1))))
        .call(1, swap(2, 1, 2), Written(3))
        .call(1, Read, Found(Some(known(4, 1))))
        .always_refused();
}

#[test]
fn what_was_said_not_to_have_happened_did_not() {
    created().not_done(0, swap(1, 0, 1)).call(1, swap(1, 0, 2), Written(2)).always_accepted();
    created().not_done(0, swap(1, 0, 1)).call(1, Read, Found(Some(known(2, 1)))).always_refused();
    created()
        .not_done(0, swap(1, 0, 1))
        .call(1, swap(1, 0, 2), Mismatch)
        .refused_for_its_mismatches();
}
