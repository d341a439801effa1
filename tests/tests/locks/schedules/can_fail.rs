//! Tests that the book finds violations, and that schedules over a broken store cause them.
//! Otherwise they would prove nothing over a correct one.

use std::cell::Cell;
use std::rc::Rc;

use shizuku_kv::rw_lock::LockMode::{Read, Write};

use crate::schedules::book::{Book, Holds};
use crate::schedules::link::Broken;
use crate::schedules::schedule;

/// A holder that gives a set answer.
#[derive(Clone)]
struct Fake(Rc<Cell<bool>>);

impl Fake {
    fn new() -> Self {
        Self(Rc::new(Cell::new(true)))
    }

    fn lost() -> Self {
        Self(Rc::new(Cell::new(false)))
    }
}

impl Holds for Fake {
    fn is_held(&self) -> bool {
        self.0.get()
    }
}

fn found(book: &Book<Fake>, what: &str) {
    let violation = book.violation().expect("it is found");
    assert!(violation.contains(what), "{violation}");
}

#[test]
fn correct_history_is_accepted() {
    let book = Book::new();
    let first = book.enter("one", "a", Read, 1, Fake::new());
    book.enter("two", "a", Read, 3, Fake::new());
    book.enter("three", "a", Read, 2, Fake::new());
    book.enter("four", "b", Write, 1, Fake::new());
    book.leave(first);
    book.check();
    assert_eq!(book.violation(), None);
}

#[test]
fn writer_beside_others_is_found() {
    for (one, other) in [(Write, Write), (Read, Write), (Write, Read)] {
        let book = Book::new();
        book.enter("one", "a", one, 1, Fake::new());
        book.enter("two", "a", other, 2, Fake::new());
        found(&book, "at a time");
    }
}

#[test]
fn overlap_with_lost_hold_is_accepted() {
    let book = Book::new();
    book.enter("one", "a", Write, 1, Fake::lost());
    book.enter("two", "a", Write, 2, Fake::new());
    assert_eq!(book.violation(), None);
}

#[test]
fn repeated_or_smaller_token_is_found() {
    let book = Book::new();
    book.enter("one", "a", Read, 1, Fake::new());
    book.enter("two", "a", Read, 1, Fake::new());
    found(&book, "given twice");
    let book = Book::new();
    let first = book.enter("one", "a", Write, 2, Fake::new());
    book.leave(first);
    book.enter("two", "a", Read, 1, Fake::new());
    found(&book, "after token 2");
}

#[test]
fn lost_lock_that_is_held_again_is_found() {
    let book = Book::new();
    let fake = Fake::new();
    book.enter("one", "a", Write, 1, fake.clone());
    fake.0.set(false);
    book.check();
    assert_eq!(book.violation(), None);
    fake.0.set(true);
    book.check();
    found(&book, "holds it again");
}

/// One of the schedules is enough. A deletion that does not compare does harm in one of seventy.
fn is_found(broken: Broken, what: &str) {
    let found = (0..1000)
        .filter_map(|seed| schedule::run(seed, broken).err())
        .find(|found| found.contains(what));
    assert!(found.is_some(), "a store of which {broken:?} passes for a sound one");
}

#[test]
fn store_without_compared_updates_is_found() {
    is_found(Broken::UpdatesDoNotCompare, "given twice");
}

#[test]
fn store_without_compared_deletions_is_found() {
    is_found(Broken::DeletionsDoNotCompare, "at a time");
}

#[test]
fn store_with_stopped_watches_is_found() {
    is_found(Broken::WatchesStop, "is not granted");
}
