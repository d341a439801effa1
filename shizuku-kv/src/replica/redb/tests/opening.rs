//! Tests of opening a file: a foreign file is rejected and not changed.

use super::*;

use std::fs;

use super::super::database::FORMAT;
use crate::local_file::FileId;

fn rejection(result: Result<RedbStorage, StorageError>, path: &Path) -> StorageError {
    let error = result.unwrap_err();
    is_in_order(&error, path);
    error
}

#[tokio::test]
async fn second_opening_is_rejected_until_the_first_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.redb");
    let mut first = open(&path).await;
    first.commit(&[put("a", 1)], Some(&checkpoint(1))).unwrap();
    let names = || fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    assert!(names().eq([path.clone()]), "creating it leaves one file");
    let link = directory.path().join("link");
    fs::hard_link(&path, &link).unwrap();
    for path in [&path, &link] {
        let error = rejection(RedbStorage::open(path, RedbOptions::new()).await, path);
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("open already"), "{error}");
    }
    drop(first);
    assert_eq!(open(&path).await.checkpoint().unwrap(), Some(checkpoint(1)));
}

#[tokio::test]
async fn foreign_file_is_rejected_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    for content in ["short".to_owned(), "a text ".repeat(10_000), "\0".repeat(5000)] {
        fs::write(&path, &content).unwrap();
        let error = rejection(RedbStorage::open(&path, RedbOptions::new()).await, &path);
        assert!(!error.is_retryable() && error.to_string().contains("no redb database"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
}

#[tokio::test]
async fn foreign_database_is_rejected_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.redb");
    const OTHER: ::redb::TableDefinition<'_, &str, u64> = ::redb::TableDefinition::new("other");
    let database = ::redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(OTHER).unwrap().insert("key", 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = rejection(RedbStorage::open(&path, RedbOptions::new()).await, &path);
    assert!(!error.is_retryable() && error.to_string().contains("something else"), "{error}");
    let database = ::redb::Database::open(&path).unwrap();
    assert_eq!(database.begin_read().unwrap().list_tables().unwrap().count(), 1);
}

#[tokio::test]
async fn unknown_format_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.redb");
    drop(open(&path).await);
    let database = ::redb::Database::open(&path).unwrap();
    for (format, says) in [(Some(&[2_u8][..]), "does not know ([2])"), (None, "damaged")] {
        let transaction = database.begin_write().unwrap();
        match format {
            Some(format) => {
                drop(transaction.open_table(ABOUT).unwrap().insert(FORMAT, format).unwrap())
            }
            None => drop(transaction.open_table(ABOUT).unwrap().remove(FORMAT).unwrap()),
        }
        transaction.commit().unwrap();
        let copy = directory.path().join("copy.redb");
        fs::copy(&path, &copy).unwrap();
        let error = rejection(RedbStorage::open(&copy, RedbOptions::new()).await, &copy);
        assert!(!error.is_retryable() && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn path_without_a_directory_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().join("absent/replica.redb"), directory.path().to_owned()] {
        let error = rejection(RedbStorage::open(&path, RedbOptions::new()).await, &path);
        assert!(!error.is_retryable(), "{error}");
    }
}

#[tokio::test]
async fn empty_file_becomes_a_database() {
    let file = tempfile::NamedTempFile::new().unwrap();
    #[cfg(unix)]
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let before = fs::metadata(file.path()).unwrap();
    let mut storage = open(file.path()).await;
    storage.commit(&[put("a", 1)], None).unwrap();
    drop(storage);
    assert!(!open(file.path()).await.is_empty().unwrap());
    let after = fs::metadata(file.path()).unwrap();
    assert_eq!(FileId::of(&after), FileId::of(&before));
    assert_eq!(after.permissions(), before.permissions());
}

#[cfg(unix)]
#[tokio::test]
async fn path_of_no_regular_file_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    std::os::unix::fs::symlink("nothing", at("dangling")).unwrap();
    for (name, what) in [
        ("pipe", "a named pipe"),
        ("socket", "a socket"),
        ("dangling", "a symbolic link to a file"),
    ] {
        let error = rejection(RedbStorage::open(at(name), RedbOptions::new()).await, &at(name));
        assert!(!error.is_retryable() && error.to_string().contains(what), "{error}");
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 3);
}

/// A change by another program to an open file.
#[cfg(unix)]
type Change = (fn(&Path), &'static str);

#[cfg(unix)]
const CHANGES: [Change; 3] = [
    (|path| fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap(), "truncated"),
    (|path| fs::remove_file(path).unwrap(), "removed"),
    (
        |path| {
            fs::copy(path, path.with_extension("copy")).unwrap();
            fs::rename(path.with_extension("copy"), path).unwrap();
        },
        "replaced",
    ),
];

#[cfg(unix)]
#[tokio::test]
async fn commit_and_close_tell_that_the_file_was_changed() {
    for (change, says) in CHANGES {
        for (sync, commits) in
            [(RedbSync::EveryCheckpoint, true), (RedbSync::Never, true), (RedbSync::Never, false)]
        {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("replica.redb");
            let mut storage =
                RedbStorage::open(&path, RedbOptions::new().sync(sync)).await.unwrap();
            storage.commit(&[put("a", 1)], Some(&checkpoint(1))).unwrap();
            change(&path);
            let mut told = Vec::new();
            if commits {
                told.push(storage.commit(&[put("b", 2)], Some(&checkpoint(2))));
                told.push(storage.commit(&[put("b", 2)], Some(&checkpoint(2))));
            }
            told.push(storage.close());
            for result in told {
                let Err(error) = result else { panic!("{says}, {sync:?}: it was not noticed") };
                is_in_order(&error, &path);
                assert!(!error.is_retryable() && error.to_string().contains(says), "{error}");
                assert!(error.to_string().contains("open it again"), "{error}");
            }
        }
    }
}

/// One of several concurrent creators of the same file has it, and no other removes it.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_creators_of_a_file_has_it() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let path = directory.path().join(format!("{round}.redb"));
        let openings =
            (0..4).map(|_| tokio::spawn(RedbStorage::open(path.clone(), RedbOptions::new())));
        let mut winners = Vec::new();
        for opening in openings.collect::<Vec<_>>() {
            match opening.await.unwrap() {
                Ok(storage) => winners.push(storage),
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
        let [winner] = winners.as_mut_slice() else { panic!("{} have the file", winners.len()) };
        winner.commit(&[put("a", 1)], Some(&checkpoint(1))).unwrap();
        winners.clear();
        assert_eq!(open(&path).await.checkpoint().unwrap(), Some(checkpoint(1)));
    }
}

/// A disk changes a closed file. The change is found, at the latest by the requested check, and
/// never read as a wrong value.
#[tokio::test]
async fn changed_byte_of_a_value_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.redb");
    let mut storage = open(&path).await;
    storage.commit(&[put("a", 1), put("b", 2)], Some(&checkpoint(2))).unwrap();
    drop(storage);
    let bytes = fs::read(&path).unwrap();
    let found =
        bytes.windows(SECRET.len()).enumerate().filter(|(_, window)| *window == SECRET.as_bytes());
    let offsets = found.map(|(offset, _)| offset).collect::<Vec<_>>();
    assert!(offsets.len() >= 2);
    let mut damaged = bytes.clone();
    offsets.iter().for_each(|offset| damaged[*offset] ^= 0x20);
    fs::write(&path, &damaged).unwrap();
    let storage = open(&path).await;
    let reader = storage.reader();
    let keys = [Key::new("a").unwrap()];
    let errors = [
        reader.get("a").unwrap_err(),
        reader.scan("").unwrap().next().unwrap().unwrap_err(),
        storage.held(&keys).unwrap_err(),
        storage.for_each_key(&mut |_, _| {}).unwrap_err(),
    ];
    for error in errors {
        is_in_order(&error, &path);
        assert!(
            error.to_string().contains("is damaged, the record of the key a: its checksum"),
            "{error}"
        );
        assert!(!error.is_retryable());
    }
    assert_eq!(reader.scan("").unwrap().count(), 1, "an error ends a scan");
    drop(storage);
    fs::write(&path, &damaged).unwrap();
    let error = rejection(
        RedbStorage::open(&path, RedbOptions::new().check_when_opened(true)).await,
        &path,
    );
    assert!(error.to_string().contains("is damaged"), "{error}");
}
