//! Tests that the checker rejects incorrect logs. Otherwise it would accept those of a broken lock
//! too.

use std::collections::BTreeMap;

use super::{Last, all};
use crate::logs::holds::{History, Violation};
use crate::logs::line::Line;

/// Parses logs from text: the number of a process, then its lines.
fn history(logs: &[(u64, &str)]) -> History {
    let parsed = logs.iter().map(|(process, text)| {
        let lines: Vec<Line> = text.lines().map(|line| line.trim().parse().unwrap()).collect();
        (*process, lines)
    });
    History::of(&parsed.collect::<Vec<_>>())
}

fn check(logs: &[(u64, &str)], last: Option<Last>) -> Vec<Violation> {
    let last: BTreeMap<_, _> = last.map(|last| ("a".to_owned(), last)).into_iter().collect();
    all(&history(logs), &last)
}

fn rejected(logs: &[(u64, &str)], why: &str) {
    rejected_with(logs, None, why);
}

fn rejected_with(logs: &[(u64, &str)], last: Option<Last>, why: &str) {
    let found = check(logs, last);
    assert!(found.iter().any(|violation| violation.what.contains(why)), "{found:#?}");
}

const WRITER: &str = "10 0 asks a write
    20 0 entered a write 1 true 5
    30 0 held true
    40 0 leaving true
    45 0 released";

#[test]
fn correct_logs_are_accepted() {
    let readers = "12 0 asks a read
        50 0 entered a read 2 true 5
        70 0 held true
        75 0 let-go dropped
        80 0 done";
    let another = "14 1 asks a read
        49 1 entered a read 3 true 5
        60 1 held false
        61 1 lost its lease was not renewed in time
        90 1 asks a write
        95 1 not-granted it is held
        100 1 asks a write
        110 1 entered a write 4 true 5
        120 1 held true
        130 1 downgraded true
        150 1 held true
        151 1 released";
    let reads_with_it = "100 0 asks a read\n 125 0 entered a read 5 false 5\n 140 0 held false";
    let found = check(&[(1, WRITER), (2, readers), (3, another), (4, reads_with_it)], None);
    assert_eq!(found, []);
}

#[test]
fn two_writers_are_rejected() {
    let other = "5 0 asks a write\n 35 0 entered a write 2 true 5\n 36 0 held true";
    rejected(&[(1, WRITER), (2, other)], "at a time");
    // It held at one moment only, which is enough.
    let other = "5 0 asks a write\n 35 0 entered a write 2 true 5\n 36 0 held false";
    rejected(&[(1, WRITER), (2, other)], "at a time");
}

#[test]
fn reader_beside_a_writer_is_rejected() {
    let reader = "5 0 asks a read\n 15 0 entered a read 2 true 5\n 21 0 held true";
    rejected(&[(1, WRITER), (2, reader)], "at a time");
    let reader = "5 0 asks a read\n 39 0 entered a read 2 true 5\n 41 0 held true";
    rejected(&[(1, WRITER), (2, reader)], "at a time");
    // The conflicting hold is not the previous one.
    let long = "5 0 asks a read\n 6 0 entered a read 2 true 5\n 100 0 held true";
    let short = "5 0 asks a read\n 7 0 entered a read 3 true 5\n 8 0 held true";
    rejected(
        &[(1, WRITER), (2, long), (3, short)],
        "process 2, worker 0 (Read, token 2, from 6 to 100) and process 1",
    );
}

#[test]
fn overlap_with_a_lost_hold_is_accepted() {
    let other = "5 0 asks a write\n 35 0 entered a write 2 true 5\n 36 0 held true";
    let lost = WRITER
        .replace("30 0 held true", "30 0 held false")
        .replace("leaving true", "leaving false");
    let lost = lost.replace("released", "lost its lease was not renewed in time");
    assert_eq!(check(&[(1, &lost), (2, other)], None), []);
}

#[test]
fn downgraded_writer_beside_a_writer_is_rejected() {
    let downgraded =
        "1 0 asks a write\n 2 0 entered a write 1 true 5\n 5 0 downgraded true\n 25 0 held true";
    rejected(&[(1, downgraded), (2, &WRITER.replace("write 1", "write 2"))], "at a time");
}

#[test]
fn repeated_or_smaller_token_is_rejected() {
    let later = "5 0 asks a write\n 50 0 entered a write 1 true 5\n 51 0 held true";
    rejected(&[(1, &WRITER.replace("write 1", "write 2")), (2, later)], "go back");
    let reader = later.replace("write", "read");
    rejected(&[(1, &WRITER.replace("write 1", "write 2")), (2, &reader)], "go back");
    rejected(&[(1, WRITER), (2, later)], "was given to process 1 and to process 2");
    // The holder of the larger token has lost the lock before it was notified of its grant.
    let lost = "1 0 asks a write\n 15 0 entered a write 2 false 5";
    rejected(&[(1, WRITER), (2, lost)], "go back");
}

#[test]
fn lost_lock_that_is_held_again_is_rejected() {
    let back = WRITER.replace("30 0 held true", "30 0 held false");
    rejected(&[(1, &back)], "held again");
    let lost = back.replace("leaving true", "leaving false");
    rejected(&[(1, &lost)], "as if it had been held");
}

#[test]
fn unexplained_loss_is_rejected() {
    rejected(&[(1, "1 0 asks a read\n 2 0 unexplained QueueFull")], "QueueFull");
}

/// A process that was paused within its section, and writes at the end of it.
fn paused(outcome: &str) -> String {
    format!(
        "1 0 asks a write\n 2 0 entered a write 1 true 5\n 3 0 writes 1\n 4 0 accepted 100\n 90 0 held false\n 91 0 writes 2
        95 0 {outcome}\n 96 0 leaving false\n 97 0 lost it was silent"
    )
}

const NEXT: &str = "10 0 asks a write
    50 0 entered a write 2 true 5
    51 0 writes 1
    55 0 accepted 101
    60 0 held true
    61 0 released";

fn last(process: u64, token: u64, number: u64) -> Option<Last> {
    Some(Last { token, process, worker: 0, number })
}

#[test]
fn rejected_stale_write_is_accepted() {
    assert_eq!(check(&[(1, &paused("rejected 2")), (2, NEXT)], last(2, 2, 1)), []);
    assert_eq!(check(&[(1, &paused("unknown no acknowledgement")), (2, NEXT)], last(2, 2, 1)), []);
}

#[test]
fn accepted_stale_write_is_rejected() {
    rejected_with(
        &[(1, &paused("accepted 102")), (2, NEXT)],
        last(1, 1, 2),
        "after one with token 2",
    );
    // By its version it came before, but by time it cannot have.
    rejected_with(
        &[(1, &paused("accepted 99")), (2, NEXT)],
        last(2, 2, 1),
        "after one with token 2",
    );
}

#[test]
fn unfounded_rejection_of_a_write_is_rejected() {
    rejected_with(
        &[(1, &paused("rejected 7")), (2, NEXT)],
        last(2, 2, 1),
        "no process has written",
    );
    rejected_with(&[(1, &paused("rejected 1")), (2, NEXT)], last(2, 2, 1), "not newer");
    let held = NEXT.replace("accepted 101", "rejected 3");
    let newer =
        "1 0 asks a write\n 20 0 entered a write 3 false 5\n 21 0 writes 1\n 22 0 accepted 4";
    rejected_with(&[(2, &held), (3, newer)], last(3, 3, 1), "while it holds");
}

#[test]
fn impossible_last_value_is_rejected() {
    let stale = paused("rejected 2");
    let logs = [(1, stale.as_str()), (2, NEXT)];
    rejected_with(&logs, None, "which is nothing");
    rejected_with(&logs, last(1, 1, 1), "whose outcome was Accepted(100)");
    rejected_with(&logs, last(1, 1, 2), "whose outcome was Rejected(2)");
    rejected_with(&logs, last(9, 9, 9), "which no process wrote");
    rejected_with(&logs, last(2, 1, 1), "with another token");
    let unknown = paused("unknown no acknowledgement");
    rejected_with(&[(1, &unknown), (2, NEXT)], last(1, 1, 2), "whose outcome was Unknown");
}
