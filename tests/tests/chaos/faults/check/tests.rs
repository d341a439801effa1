//! Tests that a good run passes, and that each way to break it is found.

use shizuku_kv::WatchScope;

use super::*;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn write(key: &str, kind: Kind, outcome: Outcome, began: u64) -> Write {
    Write { key: key.into(), kind, began: at(began), ended: at(began + 5), outcome }
}

fn sight(key: &str, version: u64, content: Content) -> Sight {
    Sight { key: key.into(), version, content }
}

fn seen(key: &str, version: u64, content: Content) -> Event {
    Event::Sight(sight(key, version, content))
}

/// The observations of a run.
#[derive(Clone, Debug)]
struct Run {
    history: History,
    bucket: Bucket,
    logs: Vec<Log>,
}

const PUT: Kind = Kind::Put { count: 0 };
const ALL: usize = 0;
const LATE: usize = 1;
const MOVED: usize = 2;
const ANEW: usize = 3;
const LIVE: usize = 4;

fn log(name: &str, form: Form, scope: WatchScope, began: u64, events: Vec<Event>) -> Log {
    let mut log = Log::new(name, form, scope);
    log.began = Some(at(began));
    for (number, event) in events.into_iter().enumerate() {
        log.push(at(1000 + number as u64), event);
    }
    log
}

fn good() -> Run {
    use Content::{Deleted, Expired, Purged, Value};
    use Outcome::{Acknowledged, Refused, Unknown};
    let writes = vec![
        write("anchor.0", PUT, Acknowledged(1), 0),
        write("plain.0", PUT, Acknowledged(2), 10),
        write("count.0", Kind::Put { count: 1 }, Acknowledged(3), 20),
        write("churn.0", PUT, Acknowledged(4), 30),
        write("churn.0", Kind::Delete, Acknowledged(5), 40),
        write("plain.0", PUT, Unknown, 50),
        write("count.0", Kind::Put { count: 2 }, Unknown, 60),
        write("count.0", Kind::Put { count: 3 }, Acknowledged(8), 70),
        write("ttl.0", Kind::Lease, Acknowledged(9), 80),
        write("churn.1", PUT, Acknowledged(11), 90),
        write("churn.1", Kind::Purge, Unknown, 100),
        write("plain.0", PUT, Refused, 110),
        write("count.0", Kind::Put { count: 4 }, Refused, 120),
        // The outcome is unknown, and the write did not take effect.
        write("plain.1", PUT, Unknown, 130),
    ];
    let newest = [
        sight("anchor.0", 1, Value(0)),
        sight("churn.0", 5, Deleted),
        sight("plain.0", 6, Value(5)),
        sight("count.0", 8, Value(7)),
        sight("ttl.0", 10, Expired),
        sight("churn.1", 12, Purged),
    ];
    let all = vec![
        seen("anchor.0", 1, Value(0)),
        Event::CaughtUp,
        seen("plain.0", 2, Value(1)),
        seen("count.0", 3, Value(2)),
        seen("churn.0", 4, Value(3)),
        seen("churn.0", 5, Deleted),
        seen("plain.0", 6, Value(5)),
        seen("count.0", 8, Value(7)),
        seen("ttl.0", 9, Value(8)),
        seen("ttl.0", 10, Expired),
        seen("churn.1", 12, Purged),
    ];
    let late = vec![seen("plain.0", 6, Value(5)), seen("count.0", 8, Value(7)), Event::CaughtUp];
    let moved = vec![
        Event::CaughtUp,
        seen("churn.0", 4, Value(3)),
        Event::Resumed,
        seen("churn.0", 5, Deleted),
        seen("churn.1", 11, Value(9)),
        Event::CaughtUp,
        Event::Resumed,
        seen("churn.1", 12, Purged),
        Event::CaughtUp,
    ];
    let anew = vec![
        Event::CaughtUp,
        seen("plain.0", 2, Value(1)),
        seen("churn.0", 4, Value(3)),
        Event::Afresh,
        seen("plain.0", 2, Value(1)),
        Event::CaughtUp,
        seen("plain.0", 6, Value(5)),
        seen("churn.1", 12, Purged),
    ];
    let live = vec![
        Event::Gone("churn.0".into()),
        seen("churn.0", 4, Value(3)),
        Event::Gone("churn.0".into()),
    ];
    Run {
        history: History { writes },
        bucket: newest.into_iter().map(|sight| (Arc::clone(&sight.key), sight)).collect(),
        logs: vec![
            log("all", Form::Watch, WatchScope::All, 6, all),
            log("late", Form::Watch, WatchScope::prefixes(["plain.", "count."]), 76, late),
            log("moved", Form::Watch, WatchScope::prefix("churn."), 0, moved),
            log("anew", Form::Watch, WatchScope::prefixes(["plain.", "churn."]), 0, anew),
            log("live", Form::Live, WatchScope::key("churn.0").unwrap(), 0, live),
        ],
    }
}

fn found(run: &Run) -> Vec<Violation> {
    all(&run.history, &run.bucket, &run.logs)
}

/// Rebuilds a log from other events.
fn edit(log: &mut Log, change: impl FnOnce(&mut Vec<Event>)) {
    let mut events = log.events.iter().map(|(_, event)| event.clone()).collect();
    change(&mut events);
    let began = log.began;
    *log = self::log(&log.name, log.form, log.scope.clone(), 0, events);
    log.began = began;
}

#[test]
fn a_good_run_passes() {
    assert_eq!(found(&good()), []);
}

/// A way to break a run, and the expected violation.
type Break = (&'static str, fn(&mut Run));

const BREAKS: &[Break] = &[
    // Order.
    ("goes back from version 5 to 4", |run| edit(&mut run.logs[ALL], |events| events.swap(4, 5))),
    ("version 5 arrives twice", |run| {
        edit(&mut run.logs[ALL], |events| events.insert(6, events[5].clone()));
    }),
    ("version 2 arrives twice", |run| {
        edit(&mut run.logs[ANEW], |events| events.insert(5, events[4].clone()))
    }),
    ("version 2 arrives twice", |run| {
        edit(&mut run.logs[ANEW], |events| events.insert(6, events[4].clone()))
    }),
    ("version 4 arrives twice", |run| {
        edit(&mut run.logs[MOVED], |events| events.insert(3, events[1].clone()))
    }),
    ("goes back from version 6 to 2", |run| {
        edit(&mut run.logs[ANEW], |events| events.insert(4, seen("plain.0", 6, Content::Value(5))));
    }),
    ("is not in scope", |run| {
        edit(&mut run.logs[MOVED], |events| events.push(seen("plain.0", 6, Content::Value(5))));
    }),
    ("version 4 arrives twice", |run| {
        edit(&mut run.logs[LIVE], |events| events.insert(2, events[1].clone()))
    }),
    // The state and its marker.
    ("caught up for a second time", |run| {
        edit(&mut run.logs[ALL], |events| events.push(Event::CaughtUp))
    }),
    ("caught up with version None; when it began, at 6.000ms, there was version 1", |run| {
        edit(&mut run.logs[ALL], |events| events.swap(0, 1));
    }),
    ("caught up with version None; when it began, at 76.000ms, there was version 8", |run| {
        edit(&mut run.logs[LATE], |events| events.swap(1, 2));
    }),
    ("caught up with version Some(2); when it began, at 76.000ms, there was version 3", |run| {
        // An acknowledged write is missing.
        edit(&mut run.logs[LATE], |events| events.insert(1, seen("count.0", 2, Content::Value(6))));
        edit(&mut run.logs[LATE], |events| events.swap(2, 3));
        run.history.writes[7].outcome = Outcome::Unknown;
    }),
    ("caught up with version Some(4); when it began, at 1.002s, there was version 5", |run| {
        edit(&mut run.logs[MOVED], |events| drop(events.remove(3)));
    }),
    ("caught up with version Some(2); when it began, at 1.004s, there was version 6", |run| {
        // A delivery of the earlier watch is missing.
        edit(&mut run.logs[ANEW], |events| events[3..7].rotate_right(1));
    }),
    ("never caught up", |run| edit(&mut run.logs[LATE], |events| drop(events.pop()))),
    ("never caught up", |run| edit(&mut run.logs[MOVED], |events| drop(events.pop()))),
    // The last one always arrives.
    ("the last seen is Value(3)", |run| edit(&mut run.logs[ALL], |events| drop(events.remove(5)))),
    ("the last seen is Value(8)", |run| edit(&mut run.logs[ALL], |events| drop(events.remove(9)))),
    ("the last seen is Value(1)", |run| edit(&mut run.logs[ALL], |events| drop(events.remove(6)))),
    ("the last seen is nothing", |run| edit(&mut run.logs[LATE], |events| drop(events.remove(0)))),
    ("the last seen is Value(9)", |run| {
        edit(&mut run.logs[MOVED], |events| drop(events.remove(7)))
    }),
    ("the last seen is Value(3)", |run| edit(&mut run.logs[LIVE], |events| drop(events.pop()))),
    ("the last seen is nothing", |run| edit(&mut run.logs[ALL], |events| drop(events.remove(10)))),
    ("the last seen is nothing", |run| {
        edit(&mut run.logs[ALL], |events| drop(events.drain(8..10)))
    }),
    ("the bucket has nothing", |run| {
        edit(&mut run.logs[ALL], |events| events.push(seen("plain.1", 13, Content::Value(13))));
    }),
    ("the bucket has Expired", |run| {
        edit(&mut run.logs[ALL], |events| events[9] = seen("ttl.0", 10, Content::Deleted));
    }),
    ("it ended", |run| run.logs[ALL].trouble = Some("it ended".to_owned())),
    // Only written values arrive, once, and as reported.
    ("which there is not", |run| {
        edit(&mut run.logs[ALL], |events| events[2] = seen("plain.0", 2, Content::Value(99)));
        run.history.writes[1].outcome = Outcome::Unknown;
    }),
    ("was refused, and took effect", |run| {
        edit(&mut run.logs[ALL], |events| events.push(seen("plain.0", 13, Content::Value(11))));
    }),
    ("which is Write", |run| {
        edit(&mut run.logs[ALL], |events| events.push(seen("plain.0", 13, Content::Value(13))));
    }),
    ("took effect at version 6 and at 13", |run| {
        edit(&mut run.logs[ALL], |events| events.push(seen("plain.0", 13, Content::Value(5))));
    }),
    ("took effect at version 2 and at 13", |run| {
        edit(&mut run.logs[ALL], |events| events.push(seen("plain.0", 13, Content::Value(1))));
    }),
    ("both acknowledged with version 8", |run| {
        run.history.writes[6].outcome = Outcome::Acknowledged(8)
    }),
    ("but that of write 1", |run| {
        edit(&mut run.logs[ALL], |events| events[2] = seen("plain.0", 2, Content::Value(5)));
    }),
    ("is Expired of ttl.0 and Value(13) of plain.1", |run| {
        edit(&mut run.logs[ALL], |events| events.push(seen("plain.1", 10, Content::Value(13))));
    }),
    ("is Deleted, but that of write 1", |run| {
        edit(&mut run.logs[ALL], |events| events[2] = seen("plain.0", 2, Content::Deleted));
    }),
    ("Purge that nobody was told of, and 0 may have happened", |run| {
        run.history.writes[10].outcome = Outcome::Refused;
    }),
    ("Delete that nobody was told of, and 0 may have happened", |run| {
        edit(&mut run.logs[ALL], |events| events.push(seen("plain.0", 13, Content::Deleted)));
    }),
    ("had no time to live", |run| run.history.writes[8].kind = PUT),
    ("is an expiry, but that of write 9", |run| {
        edit(&mut run.logs[ALL], |events| events.push(seen("churn.1", 11, Content::Expired)));
    }),
    // The bucket.
    ("was acknowledged with version 8, the bucket has Value(6)", |run| {
        run.bucket.insert("count.0".into(), sight("count.0", 7, Content::Value(6)));
    }),
    ("was acknowledged with version 1, the bucket has nothing", |run| {
        run.bucket.remove("anchor.0");
    }),
    ("before write 5 began", |run| {
        run.history.writes[1].outcome = Outcome::Acknowledged(14);
        run.logs[ALL].events.remove(2);
    }),
    // Counters.
    ("counted to 1 and 1: one is lost", |run| run.history.writes[7].kind = Kind::Put { count: 1 }),
    ("nobody can have counted to [2]", |run| run.history.writes[6].outcome = Outcome::Refused),
    ("acknowledged to count to 3, and is 2", |run| {
        run.history.writes[7].outcome = Outcome::Acknowledged(8);
        run.bucket.insert("count.0".into(), sight("count.0", 15, Content::Value(6)));
    }),
    ("nobody can have counted to [4]", |run| {
        run.history.writes[12].kind = Kind::Put { count: 5 };
        run.history.writes[12].outcome = Outcome::Acknowledged(16);
        run.bucket.insert("count.0".into(), sight("count.0", 16, Content::Value(12)));
    }),
];

#[test]
fn every_break_is_found() {
    let mut wrong = String::new();
    for (number, (expected, change)) in BREAKS.iter().enumerate() {
        let mut run = good();
        change(&mut run);
        let found = found(&run);
        if !found.iter().any(|violation| violation.what.contains(expected)) {
            wrong += &format!("break {number}: nothing says {expected:?} in {found:#?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_resumed_watch_has_to_go_on_without_a_gap() {
    let run = good();
    let from = 5;
    let mut resumed = run.logs[ALL].resumed_after(from);
    for (at, event) in &run.logs[ALL].events[from..] {
        resumed.push(*at, event.clone());
    }
    resumed.push(at(2000), Event::CaughtUp);
    let check = |log: &Log| [order(log), settled(&run.history, &run.bucket, log)].concat();
    assert_eq!(check(&resumed), []);
    // Removes each event in turn.
    let events = resumed.events.clone();
    for left_out in 0..events.len() {
        let mut gap = run.logs[ALL].resumed_after(from);
        for (_, (at, event)) in events.iter().enumerate().filter(|(number, _)| *number != left_out)
        {
            gap.push(*at, event.clone());
        }
        // A superseded entry may be left out.
        let superseded =
            matches!(&events[left_out].1, Event::Sight(sight) if run.bucket[&sight.key] != *sight);
        assert_eq!(check(&gap).is_empty(), superseded, "{:?}", events[left_out]);
    }
    // Repeats an earlier event.
    let mut again = run.logs[ALL].resumed_after(from);
    for (at, event) in run.logs[ALL].events[from - 1..].iter().chain(events.last()) {
        again.push(*at, event.clone());
    }
    assert!(
        check(&again).iter().any(|violation| violation.what.contains("version 4 arrives twice"))
    );
}
