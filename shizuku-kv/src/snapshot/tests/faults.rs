//! Each operation of the disk fails once, or fails from then on, or does half of its work.

use std::cell::Cell;
use std::io::ErrorKind;
use std::path::Path;

use super::super::{SnapshotError, SnapshotWriter};
use super::fixture::*;
use super::sim::{Fault, Plan, SimDisk};
use crate::store::KvUpdate;

/// The batches of the test. Some are large and written in parts.
fn batches() -> Vec<Vec<KvUpdate>> {
    let many =
        |from: u64| (0..12).map(move |n| put(&format!("many.{n}"), &[n; 40], from + u64::from(n)));
    vec![
        vec![put("a", b"1", 1), put("b", b"2", 2)],
        many(10).collect(),
        vec![delete("a", 30), put("c", &[1; 300], 31)],
        many(40).chain([delete("many.3", 60)]).collect(),
        vec![put("a", b"2", 70)],
    ]
}

/// A writer and its expected state: the disk has one of `possible`.
struct Run {
    disk: SimDisk,
    writer: Option<SnapshotWriter>,
    /// The last acknowledged checkpoint.
    point: Point,
    /// The checkpoint whose write failed. After a failed sync it may be on the disk or not.
    maybe: Option<Point>,
    poisoned: bool,
    errors: usize,
}

impl Run {
    /// Opens the log, and retries if that fails.
    fn open(&mut self) {
        loop {
            match open_on(&self.disk, options()) {
                Ok((writer, state)) => {
                    let found = Point::of(&state);
                    self.expect(&found);
                    self.point = found;
                    (self.writer, self.maybe, self.poisoned) = (Some(writer), None, false);
                    return;
                }
                Err(error) => {
                    assert!(matches!(error, SnapshotError::Io { .. }), "{error}");
                    self.failed();
                }
            }
        }
    }

    fn failed(&mut self) {
        self.errors += 1;
        assert!(self.errors < 100, "it never succeeds");
        self.look();
    }

    fn expect(&self, found: &Point) {
        let right = *found == self.point || self.maybe.as_ref() == Some(found);
        assert!(right, "{found:?}\ninstead of {:?}\nor {:?}", self.point, self.maybe);
    }

    /// Checks that the content of the disk can be loaded, whatever has failed.
    fn look(&self) {
        let before = self.disk.operations();
        match load_on(&self.disk) {
            Ok(state) => self.expect(&Point::of(&state)),
            Err(SnapshotError::NotFound { .. }) => self.expect(&Point::empty()),
            // The fault has hit this read, or all operations fail from now on.
            Err(SnapshotError::Io { .. }) => {}
            Err(error) => panic!("{error} after operation {before}"),
        }
    }

    /// Calls until it works. Opens the log again if the writer says so.
    fn insist(
        &mut self,
        mut call: impl FnMut(&mut SnapshotWriter) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        loop {
            if self.writer.is_none() {
                self.open();
            }
            let Some(writer) = &mut self.writer else { panic!("it was opened") };
            match call(writer) {
                Ok(()) => {
                    assert!(!self.poisoned, "a poisoned writer does something");
                    return Ok(());
                }
                Err(error @ SnapshotError::Poisoned { .. }) => {
                    self.failed();
                    if self.poisoned {
                        self.writer = None;
                        self.poisoned = false;
                        return Err(error);
                    }
                    // Every later call returns the error too.
                    self.poisoned = true;
                    let Some(writer) = &mut self.writer else { panic!("it was opened") };
                    assert!(matches!(
                        writer.append(&put("x", b"", 1)),
                        Err(SnapshotError::Poisoned { .. })
                    ));
                    assert!(matches!(writer.sync(), Err(SnapshotError::Poisoned { .. })));
                    assert!(matches!(writer.discard(), Err(SnapshotError::Poisoned { .. })));
                    assert!(matches!(writer.compact(), Err(SnapshotError::Poisoned { .. })));
                }
                Err(SnapshotError::Io { .. }) => self.failed(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn batch(&mut self, index: usize, batch: &[KvUpdate]) {
        let reached = cursor(index as u64);
        // Starts again if the writer had to be reopened.
        'again: loop {
            let mut next = self.point.clone();
            next.cursor = Some(reached);
            batch.iter().for_each(|update| apply(&mut next.state, update));
            for update in batch {
                if self.insist(|writer| writer.append(update)).is_err() {
                    continue 'again;
                }
            }
            self.maybe = Some(next.clone());
            if self.insist(|writer| writer.checkpoint(Some(&reached))).is_ok() {
                (self.point, self.maybe) = (next, None);
                return;
            }
        }
    }
}

fn run(plan: Plan) -> Run {
    let disk = SimDisk::default();
    disk.plan(plan);
    let mut run =
        Run { disk, writer: None, point: Point::empty(), maybe: None, poisoned: false, errors: 0 };
    for (index, batch) in batches().iter().enumerate() {
        run.batch(index, batch);
        if index == 2 {
            // A failed compaction loses nothing, so this does not retry.
            let compacted = run.writer.as_mut().map(SnapshotWriter::compact);
            match compacted {
                Some(Err(SnapshotError::Poisoned { .. })) => run.writer = None,
                Some(Err(error)) => {
                    let writer = run.writer.as_mut().unwrap();
                    assert_eq!(
                        writer.last_compaction_error().unwrap().to_string(),
                        error.to_string()
                    );
                }
                _ => {}
            }
            run.look();
        }
        if index == 3 {
            run.writer = None;
            run.look();
        }
    }
    run
}

fn check(plan: Plan) -> u64 {
    let run = run(plan);
    let operations = run.disk.operations();
    let log = run.disk.log();
    drop(run.writer);
    run.disk.plan(Plan::default());
    let mut expected = Point { state: Model::new(), cursor: Some(cursor(4)) };
    batches().iter().flatten().for_each(|update| apply(&mut expected.state, update));
    let state = load_on(&run.disk).unwrap_or_else(|error| panic!("{plan:?}: {error}\n{log:#?}"));
    assert_eq!(Point::of(&state), expected, "{plan:?}");
    // Everything was acknowledged.
    let state = load_on(&run.disk.with_only_what_is_synced())
        .unwrap_or_else(|error| panic!("{plan:?}: {error}"));
    assert_eq!(Point::of(&state), expected, "{plan:?}");
    // Checks again after the leftovers have been removed.
    let (writer, state) = open_on(&run.disk, options()).unwrap();
    assert_eq!(Point::of(&state), expected, "{plan:?}");
    drop(writer);
    assert_eq!(run.disk.paths(), [Path::new(PATH)]);
    operations
}

#[test]
fn failure_of_any_operation_loses_nothing_acknowledged() {
    let operations = check(Plan::default());
    assert!(operations > 60, "{operations}");
    let faults =
        [Fault::Error(ErrorKind::Other), Fault::Error(ErrorKind::StorageFull), Fault::Short];
    for fault in faults {
        for at in 0..operations + 20 {
            for count in [1, 2, 5] {
                check(Plan { at: Some(at), count, fault: Some(fault) });
            }
        }
    }
}

#[test]
fn interrupted_call_is_retried() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    let interrupted =
        |at| Plan { at: Some(at), count: 3, fault: Some(Fault::Error(ErrorKind::Interrupted)) };
    // The operations after the check of the length, which no signal interrupts: the read of the
    // header, and the write.
    disk.plan(interrupted(1));
    writer.checkpoint(None).unwrap();
    writer.append(&put("a", b"1", 2)).unwrap();
    disk.plan(interrupted(2));
    writer.checkpoint(None).unwrap();
    disk.plan(interrupted(0));
    disk.skip("open");
    assert_eq!(load_on(&disk).unwrap().entries.len(), 1);
}

#[test]
fn full_disk_is_retryable_unlike_a_poisoned_writer() {
    let disk = SimDisk::default();
    let (mut writer, _) = open_on(&disk, options()).unwrap();
    writer.append(&put("a", b"1", 1)).unwrap();
    // The check of the file takes two operations.
    disk.plan(Plan { at: Some(2), count: 1, fault: Some(Fault::Error(ErrorKind::StorageFull)) });
    let error = writer.checkpoint(None).unwrap_err();
    assert!(
        error.is_retryable() && matches!(error, SnapshotError::Io { offset: Some(64), .. }),
        "{error}"
    );
    // Half of a write is cut off, because it would only use room on a full disk.
    disk.plan(Plan { at: Some(2), count: 1, fault: Some(Fault::Short) });
    writer.checkpoint(None).unwrap();
    writer.append(&put("a", b"1", 2)).unwrap();
    disk.plan(Plan { at: Some(3), count: 1, fault: Some(Fault::Error(ErrorKind::StorageFull)) });
    disk.shorten_next_write();
    writer.checkpoint(None).unwrap_err();
    assert_eq!(disk.content(Path::new(PATH)).len() as u64, writer.file_len());
    writer.checkpoint(None).unwrap();
    assert_eq!(load_on(&disk).unwrap().entries.len(), 1);

    writer.append(&put("b", b"2", 2)).unwrap();
    // The write fails, and so does cutting off its remainder.
    disk.plan(Plan { at: Some(2), count: 2, fault: Some(Fault::Error(ErrorKind::StorageFull)) });
    let error = writer.checkpoint(None).unwrap_err();
    assert!(!error.is_retryable() && matches!(error, SnapshotError::Poisoned { .. }), "{error}");
    assert!(error.to_string().contains("open it again"));
    drop(writer);
    let (_, state) = open_on(&disk, options()).unwrap();
    assert_eq!(state.entries.len(), 1);
}

#[test]
fn failed_compaction_is_retried_after_more_growth() {
    let disk = SimDisk::default();
    let threshold = 2000;
    let (mut writer, _) = open_on(&disk, options().compaction_threshold(threshold)).unwrap();
    let version = Cell::new(0);
    let grow = |writer: &mut SnapshotWriter| {
        version.set(version.get() + 1);
        writer.append(&put("a", &[1; 20], version.get())).unwrap();
        writer.checkpoint(None).unwrap();
    };
    let grow_to = |writer: &mut SnapshotWriter, len: u64| {
        while writer.file_len() < len {
            grow(writer);
        }
    };
    let settle = |writer: &SnapshotWriter| wait_until("the compaction", || !writer.is_compacting());
    grow_to(&mut writer, threshold - 200);
    assert!(writer.last_compaction_error().is_none() && !writer.is_compacting());
    // The file of the compaction cannot be created. No other name is opened from here on.
    disk.reject_new_files(true);
    grow_to(&mut writer, threshold);
    settle(&writer);
    let error = writer.last_compaction_error().unwrap().to_string();
    assert!(error.contains(".compact"), "{error}");
    let failed_at = writer.file_len();
    disk.reject_new_files(false);
    grow_to(&mut writer, failed_at + failed_at / 2 - 200);
    settle(&writer);
    assert!(writer.last_compaction_error().is_some(), "it was tried too early");
    assert!(writer.file_len() > failed_at);
    // Each round is one checkpoint. A target length would never be reached if the compaction
    // shortened the log before the length is compared.
    let limit = writer.file_len() + 400;
    while writer.last_compaction_error().is_some() {
        assert!(writer.file_len() < limit, "it is not tried again");
        grow(&mut writer);
        settle(&writer);
    }
    assert!(writer.file_len() < 500, "{}", writer.file_len());
}
