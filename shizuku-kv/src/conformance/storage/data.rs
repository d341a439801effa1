//! Keys, versions, times and values: everything that the types allow, and many of them.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::check::{StorageCheck, storage_checks};
use super::subject::{StorageFixture, Subject, checkpoint, delete, key_of, put, time};
use crate::conformance::CheckResult;
use crate::store::{KvEntry, KvUpdate, VersionToken};

pub(super) const CHECKS: &[StorageCheck] = storage_checks! {
    the_longest_keys_are_held []
        "Every key is held, up to the longest, of 1,024 bytes.",
    every_character_of_a_key_is_kept []
        "Every valid key is held, whatever its characters.",
    versions_come_back_as_they_were []
        "Versions are opaque and distinct: numbers of any size, and up to 16 bytes of a \
         backend's own.",
    times_come_back_as_they_were []
        "A time is the same to the last digit, before 1970 and far in the future.",
    an_empty_value_is_held []
        "An empty value is a value like any other, never a deletion.",
    large_values_are_accepted []
        "A value may be as large as stores take, alone and next to others in one commit.",
    values_come_back_as_they_were [Values]
        "Values are any bytes, and those of the last put.",
    many_keys_fit_into_one_commit []
        "A commit may have any number of changes.",
    many_keys_come_over_many_commits []
        "A storage holds any number of keys.",
};

fn the_longest_keys_are_held(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let mut keys = Vec::new();
    for length in [1, 2, 127, 128, 129, 254, 255, 256, 257, 511, 512, 1023, 1024] {
        // The keys differ only in their last character. A storage that truncates keys, or uses them
        // as file names, confuses them.
        keys.push(format!("{}x", "k".repeat(length - 1)));
        keys.push(format!("{}y", "k".repeat(length - 1)));
    }
    keys.push(vec!["t"; 512].join("."));
    for (number, key) in (1..).zip(&keys) {
        subject.commit([put(key, number)?], None)?;
    }
    subject.verify("after puts of keys of every length")?;
    in_all_ways(&mut subject)?;
    for (number, key) in (1000..).zip(&keys) {
        subject.commit([delete(key, number)?], None)?;
    }
    subject.verify("after their deletion")
}

fn every_character_of_a_key_is_kept(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let characters = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain("-_=/".chars());
    let mut changes = Vec::new();
    for (number, character) in (1..).zip(characters) {
        changes.push(put(&character.to_string(), number)?);
        changes.push(put(&format!("{character}.{character}{character}"), 1000 + number)?);
    }
    subject.takes(changes, None, "puts of keys with every character")?;
    in_all_ways(&mut subject)
}

fn versions_come_back_as_they_were(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let mut versions = [0, 1, 255, 256, u64::from(u32::MAX), u64::MAX - 1, u64::MAX]
        .map(VersionToken::from_u64)
        .to_vec();
    for length in 0..=VersionToken::MAX_LEN {
        // Includes zeros. A storage that pads with them, or reads eight bytes as a number, cannot
        // distinguish these.
        for byte in [0, 1, 0xff] {
            versions.push(VersionToken::opaque(&vec![byte; length])?);
        }
    }
    versions.push(VersionToken::opaque(&1_u64.to_be_bytes())?);
    versions.push(VersionToken::opaque(&1_u64.to_le_bytes())?);
    let entries = (1..).zip(&versions).map(|(number, version)| {
        Ok(KvUpdate::Put(KvEntry::put(
            key_of(&format!("key.{number}"))?,
            Bytes::new(),
            *version,
            time(number),
        )))
    });
    subject.takes(
        entries.collect::<CheckResult<Vec<_>>>()?,
        None,
        "puts with versions of every kind",
    )?;
    for version in versions {
        let entry = KvEntry::put(key_of("one")?, Bytes::new(), version, time(0));
        subject.takes([KvUpdate::Put(entry)], None, "a put of one key with the next of them")?;
    }
    in_all_ways(&mut subject)
}

fn times_come_back_as_they_were(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let epoch = SystemTime::UNIX_EPOCH;
    let spans = [
        Duration::ZERO,
        // Clocks that count in steps of 100 ns make these the same moment.
        Duration::from_nanos(1),
        Duration::from_nanos(100),
        Duration::from_nanos(999_999_999),
        Duration::new(1, 999_999_999),
        Duration::new(1_700_000_000, 123_456_789),
        Duration::new(u64::from(u32::MAX), 900),
        // The last that fits into 64 bits of nanoseconds, and the next.
        Duration::from_nanos(u64::MAX),
        Duration::new(18_446_744_074, 0),
        // The end of the year 9999.
        Duration::new(253_402_300_799, 999_999_900),
    ];
    let times = spans
        .iter()
        .flat_map(|span| [epoch.checked_add(*span), epoch.checked_sub(*span)])
        .flatten();
    let mut changes = Vec::new();
    for (number, time) in times.enumerate() {
        let version = VersionToken::from_u64(1);
        changes.push(KvUpdate::Put(KvEntry::put(
            key_of(&format!("key.{number}"))?,
            Bytes::new(),
            version,
            time,
        )));
    }
    ensure!(changes.len() > spans.len(), "the check has no times before 1970");
    subject.takes(changes, None, "puts with times of every kind")?;
    in_all_ways(&mut subject)
}

fn value(key: &str, number: u64, value: impl Into<Bytes>) -> CheckResult<KvUpdate> {
    let version = VersionToken::from_u64(number);
    Ok(KvUpdate::Put(KvEntry::put(key_of(key)?, value.into(), version, time(number))))
}

fn an_empty_value_is_held(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    subject.takes([value("empty", 1, "")?], None, "a put of an empty value")?;
    ensure!(!subject.storage()?.is_empty()?, "a storage with an empty value says that it is empty");
    subject.takes(
        [value("other", 2, "full")?, value("empty", 3, "")?],
        None,
        "another put of an empty value",
    )?;
    subject.takes(
        [value("other", 4, "")?, value("empty", 5, "full")?],
        None,
        "an empty value in place of another",
    )?;
    in_all_ways(&mut subject)
}

fn large_values_are_accepted(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let large = |byte| {
        (0_u32..1 << 20).map(|index| (index >> 8) as u8 ^ index as u8 ^ byte).collect::<Vec<_>>()
    };
    subject.takes([value("large", 1, large(0))?], None, "a put of 1 MiB")?;
    let mut changes = vec![put("small", 2)?];
    for number in 3..7_u8 {
        changes.push(value(&format!("large.{number}"), number.into(), large(number))?);
        changes.push(put(&format!("small.{number}"), number.into())?);
    }
    subject.takes(changes, None, "puts of several values of 1 MiB in one commit")?;
    for size in [4095, 4096, 4097, 65_535, 65_536, 65_537] {
        subject.commit([value(&format!("size.{size}"), 8, vec![b'v'; size])?], None)?;
    }
    subject.takes(
        [value("large", 9, "small")?, value("small", 10, large(10))?],
        None,
        "a change of sizes",
    )?;
    in_all_ways(&mut subject)
}

fn values_come_back_as_they_were(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let values: [Vec<u8>; 6] = [
        (0..=255).collect(),
        vec![0],
        vec![0; 3000],
        vec![0xff; 3000],
        b"\r\n".to_vec(),
        Vec::new(),
    ];
    let changes =
        (1..).zip(values).map(|(number, bytes)| value(&format!("key.{number}"), number, bytes));
    subject.takes(changes.collect::<CheckResult<Vec<_>>>()?, None, "puts of any bytes")?;
    subject.takes(
        [value("one", 10, "first")?, value("one", 11, "second")?],
        None,
        "two puts of a key",
    )?;
    // Only the value differs, because a recreated store may have reached the same version.
    subject.takes([value("one", 11, "third")?], None, "a put with the same version and time")?;
    subject.takes([delete("key.1", 12)?], None, "a deletion")?;
    ensure!(subject.entry(&key_of("key.1")?)?.is_none(), "the value of a deleted key is there");
    ensure!(subject.entry(&key_of("key")?)?.is_none(), "a key that was never held has a value");
    in_all_ways(&mut subject)
}

fn many_keys_fit_into_one_commit(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    let puts = (0..10_000).map(|number| put(&format!("key.{}", (number * 7919) % 10_000), number));
    subject.takes(
        puts.collect::<CheckResult<Vec<_>>>()?,
        Some(checkpoint(1, 1)),
        "10,000 puts in one commit",
    )?;
    let others = (0..10_000).map(|number| match number % 2 {
        0 => delete(&format!("key.{number}"), 20_000 + number),
        _ => put(&format!("key.{number}"), 20_000 + number),
    });
    subject.takes(
        others.collect::<CheckResult<Vec<_>>>()?,
        None,
        "10,000 other changes in one commit",
    )
}

fn many_keys_come_over_many_commits(fixture: &StorageFixture) -> CheckResult {
    let mut subject = fixture.storage()?;
    for batch in 0..50 {
        let puts = (0..200)
            .map(|number| put(&format!("key.{}", number * 50 + batch), 200 * batch + number));
        subject.commit(puts.collect::<CheckResult<Vec<_>>>()?, Some(checkpoint(batch, 1)))?;
    }
    subject.verify("after 10,000 puts over 50 commits")?;
    for batch in 0..10 {
        let deletions =
            (0..100).map(|number| delete(&format!("key.{}", number * 10 + batch), 20_000 + number));
        subject.commit(
            deletions.collect::<CheckResult<Vec<_>>>()?,
            Some(checkpoint(100 + batch, 1)),
        )?;
    }
    subject.verify("after 1,000 deletions over 10 commits")
}

/// Reopens the storage if it is durable, and checks that it is the same.
fn in_all_ways(subject: &mut Subject<'_>) -> CheckResult {
    if subject.is_durable() { subject.reopen() } else { Ok(()) }
}
