//! Foreign files at the path of a log, and other programs that touch a log while it is open. No
//! foreign file is replaced, and every change to the log is noticed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::super::{
    SnapshotError, SnapshotOptions, SnapshotReader, SnapshotWriter, SyncPolicy, load,
};
use super::fixture::*;

const POLICIES: [SyncPolicy; 3] = [
    SyncPolicy::EveryCheckpoint,
    SyncPolicy::Interval(Duration::from_secs(3600)),
    SyncPolicy::Never,
];

/// Creates a file that is not a regular file with a command, as root or not.
fn make(command: &str, arguments: &[&str], path: &Path) -> bool {
    let made = Command::new(command).arg(path).args(arguments).status().unwrap();
    made.success()
}

/// Returns the errors of all ways to open a log. Fails if one of them blocks.
fn errors(path: &Path) -> Vec<SnapshotError> {
    let (path, (send, receive)) = (path.to_owned(), channel());
    std::thread::spawn(move || {
        let opened = SnapshotWriter::open(&path, SnapshotOptions::new()).map(drop);
        let read = SnapshotReader::open(&path).map(drop);
        send.send([opened, read, load(&path).map(drop)]).unwrap();
    });
    let Ok(results) = receive.recv_timeout(Duration::from_secs(30)) else {
        panic!("opening blocks")
    };
    results.map(Result::unwrap_err).into()
}

/// Returns the identity of the file at a path, without following links.
fn identity(path: &Path) -> (u64, u64, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.dev(), found.ino(), found.mode())
}

#[test]
fn open_of_a_path_that_is_no_regular_file_leaves_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("directory")).unwrap();
    assert!(make("mkfifo", &[], &at("pipe")));
    let _listener = UnixListener::bind(at("socket")).unwrap();
    symlink(at("nothing"), at("dangling")).unwrap();
    symlink(at("pipe"), at("link")).unwrap();
    // Only root can make a device, and only root could replace an existing one.
    let device = if make("mknod", &["c", "1", "3"], &at("device")) {
        at("device")
    } else {
        "/dev/null".into()
    };
    for (path, what) in [
        (at("directory"), "a directory"),
        (at("pipe"), "a named pipe"),
        (at("socket"), "a socket"),
        (device, "a device"),
        (at("dangling"), "a symbolic link to a file that does not exist"),
        (at("link"), "a named pipe"),
    ] {
        let before = identity(&path);
        // The error names the target of a link.
        let name = path.canonicalize().unwrap_or_else(|_| path.clone()).display().to_string();
        for error in errors(&path) {
            assert!(matches!(error, SnapshotError::NotASnapshot { .. }), "{name}: {error}");
            assert!(
                error.to_string().contains(&name) && error.to_string().contains(what),
                "{name}: {error}"
            );
            assert!(
                error.to_string().contains("choose another path") && !error.is_retryable(),
                "{error}"
            );
        }
        assert_eq!(identity(&path), before, "{}", path.display());
    }
    assert!(!at("nothing").exists());
    assert!(fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(
        fs::read_dir(&directory).unwrap().count(),
        if at("device").exists() { 6 } else { 5 }
    );
}

fn write_one(writer: &mut SnapshotWriter, version: u64) -> Result<(), SnapshotError> {
    writer.append(&put("a", b"1", version)).unwrap();
    writer.checkpoint(Some(&cursor(version)))
}

#[test]
fn link_to_a_log_stays_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let (link, target) = (directory.path().join("link"), directory.path().join("target"));
    SnapshotWriter::open(&target, SnapshotOptions::new()).unwrap().0.close().unwrap();
    symlink("target", &link).unwrap();
    let before = identity(&link);
    let (mut writer, _) = SnapshotWriter::open(&link, SnapshotOptions::new()).unwrap();
    write_one(&mut writer, 1).unwrap();
    writer.compact().unwrap();
    assert!(matches!(
        SnapshotWriter::open(&target, SnapshotOptions::new()),
        Err(SnapshotError::Locked { .. })
    ));
    writer.close().unwrap();
    assert_eq!(identity(&link), before);
    assert_eq!(load(&target).unwrap().entries.len(), 1);
}

/// A file as an administrator prepares it: empty, of another owner, and writable by the group. Only
/// root can give a file away; as another user, the test prepares a file of its own.
#[test]
fn prepared_file_keeps_owner_and_mode() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    File::create(&path).unwrap();
    let given_away = std::os::unix::fs::chown(&path, Some(12345), Some(12346)).is_ok();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let rights = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    let (before, file) = (rights(&path), identity(&path));
    assert_eq!(before.0 == 12345, given_away);
    let (mut writer, state) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
    assert!(state.entries.is_empty());
    write_one(&mut writer, 1).unwrap();
    assert_eq!(identity(&path), file, "it is another file");
    writer.compact().unwrap();
    assert_ne!(identity(&path), file, "it was not compacted");
    write_one(&mut writer, 2).unwrap();
    writer.close().unwrap();
    assert_eq!(rights(&path), before);
    assert_eq!(load(&path).unwrap().cursor, Some(cursor(2)));
}

fn must_be_locked(path: &Path) {
    let error = SnapshotWriter::open(path, SnapshotOptions::new()).unwrap_err();
    assert!(matches!(error, SnapshotError::Locked { .. }) && error.is_retryable(), "{error}");
}

#[test]
fn second_writer_after_removals_beside_the_log_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let (mut writer, _) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
    for compacted in [false, true] {
        if compacted {
            write_one(&mut writer, 1).unwrap();
            writer.compact().unwrap();
        }
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            if entry.path() != path {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        must_be_locked(&path);
    }
    writer.close().unwrap();
    SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
}

#[test]
fn second_writer_through_a_hard_link_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let (path, other) = (directory.path().join("state"), directory.path().join("other"));
    let (mut writer, _) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
    write_one(&mut writer, 1).unwrap();
    fs::hard_link(&path, &other).unwrap();
    must_be_locked(&other);
    writer.close().unwrap();
    let (_writer, _) = SnapshotWriter::open(&other, SnapshotOptions::new()).unwrap();
    must_be_locked(&path);
}

/// A change by another program to a log, and the resulting text of the error.
type Change = (fn(&Path), &'static str);

const CHANGES: [Change; 6] = [
    (|path| File::options().write(true).open(path).unwrap().set_len(0).unwrap(), "truncated"),
    (|path| File::options().write(true).open(path).unwrap().set_len(70).unwrap(), "truncated"),
    (|path| fs::remove_file(path).unwrap(), "removed"),
    (
        |path| {
            fs::copy(path, path.with_extension("copy")).unwrap();
            fs::rename(path.with_extension("copy"), path).unwrap();
        },
        "replaced",
    ),
    (
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
        "replaced",
    ),
    (
        |path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"a line").unwrap(),
        "written to",
    ),
];

/// A call that must notice a change of the file.
type Call = (&'static str, fn(&mut SnapshotWriter) -> Result<(), SnapshotError>);

const CALLS: [Call; 4] = [
    ("checkpoint", |writer| write_one(writer, 4)),
    ("checkpoint of nothing new", |writer| writer.checkpoint(Some(&cursor(3)))),
    ("compaction", SnapshotWriter::compact),
    ("part", |writer| (0..40).try_for_each(|n| writer.append(&put("part", &[1; 60], n)))),
];

#[test]
fn every_call_reports_the_changed_file() {
    for (number, (change, says)) in CHANGES.into_iter().enumerate() {
        for (policy, (call, after)) in
            POLICIES.into_iter().flat_map(|it| CALLS.map(|call| (it, call)))
        {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state");
            let options = SnapshotOptions::new().sync(policy);
            let (mut writer, _) = SnapshotWriter::open(&path, options).unwrap();
            for version in 1..4 {
                write_one(&mut writer, version).unwrap();
            }
            change(&path);
            let (file, before) = (path.is_file().then(|| fs::read(&path).unwrap()), path.is_dir());
            let told = after(&mut writer);
            let Err(error) = told else {
                panic!("change {number}, {policy:?}: the {call} did not notice it")
            };
            let text = error.to_string();
            assert!(matches!(error, SnapshotError::Interfered { .. }), "{text}");
            let path_and_cause =
                text.contains(&format!("{:?}", path.display().to_string())) && text.contains(says);
            assert!(
                path_and_cause && text.contains("open it again"),
                "change {number}, {policy:?}, {call}: {text}"
            );
            assert!(!error.is_retryable());
            // Every later call returns the error, and the present file is not touched.
            assert!(matches!(writer.sync(), Err(SnapshotError::Interfered { .. })));
            assert!(matches!(writer.compact(), Err(SnapshotError::Interfered { .. })));
            assert!(matches!(writer.close(), Err(SnapshotError::Interfered { .. })));
            assert_eq!(
                (path.is_file().then(|| fs::read(&path).unwrap()), path.is_dir()),
                (file, before)
            );
        }
    }
}

#[test]
fn close_tells_that_the_file_was_changed() {
    for (number, (change, says)) in CHANGES.into_iter().enumerate() {
        for (policy, unfinished) in POLICIES.into_iter().zip([false, true, true]) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state");
            let options = SnapshotOptions::new().sync(policy);
            let (mut writer, _) = SnapshotWriter::open(&path, options).unwrap();
            write_one(&mut writer, 1).unwrap();
            for n in 0..if unfinished { 40 } else { 0 } {
                writer.append(&put("part", &[1; 60], n)).unwrap();
            }
            change(&path);
            let told = writer.close();
            let Err(error) = told else {
                panic!("change {number}, {policy:?}: it was not noticed")
            };
            let text = error.to_string();
            assert!(text.contains(says), "change {number}, {policy:?}: {text}");
        }
    }
}

/// A truncation as by `logrotate` with `copytruncate`, between the check of the file and the write:
/// the file is as long as before.
#[test]
fn truncation_hidden_by_a_write_is_reported() {
    for policy in POLICIES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let (mut writer, _) =
            SnapshotWriter::open(&path, SnapshotOptions::new().sync(policy)).unwrap();
        write_one(&mut writer, 1).unwrap();
        let len = writer.file_len();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(0).unwrap();
        file.set_len(len).unwrap();
        let text = write_one(&mut writer, 2).unwrap_err().to_string();
        assert!(text.contains("truncated"), "{text}");
    }
}

/// A foreign file with the name that a compaction uses.
#[test]
fn file_of_others_beside_the_log_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let beside = directory.path().join("state.compact");
    let others: [fn(&Path); 4] = [
        |beside| fs::write(beside, "a text").unwrap(),
        |beside| fs::create_dir(beside).unwrap(),
        |beside| symlink("state", beside).unwrap(),
        |beside| SnapshotWriter::open(beside, SnapshotOptions::new()).unwrap().0.close().unwrap(),
    ];
    for (number, other) in others.into_iter().enumerate() {
        other(&beside);
        let before = identity(&beside);
        let (mut writer, _) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
        write_one(&mut writer, number as u64 + 1).unwrap();
        let error = writer.compact().unwrap_err().to_string();
        assert!(error.contains("state.compact"), "{error}");
        write_one(&mut writer, number as u64 + 2).unwrap();
        writer.close().unwrap();
        assert_eq!(identity(&beside), before, "{number}");
        match before.2 & 0o170_000 {
            0o040_000 => fs::remove_dir(&beside).unwrap(),
            _ => fs::remove_file(&beside).unwrap(),
        }
    }
    let (mut writer, _) = SnapshotWriter::open(&path, SnapshotOptions::new()).unwrap();
    writer.compact().unwrap();
}
