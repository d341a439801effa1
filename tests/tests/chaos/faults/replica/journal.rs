//! The journal of `apply`, and the permitted content of the log after it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use shizuku_kv::KvUpdate;
use shizuku_kv::replica::Batch;

pub(super) const FILE: &str = "journal";

/// The content of a replica: the version of each key, and the position of its cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) entries: BTreeMap<String, u64>,
    pub(super) cursor: Option<u64>,
}

/// Returns a batch as text: a line for each update, and a final line, without which it is invalid.
pub(super) fn written(batch: &Batch, resynced: bool) -> String {
    let mut text = String::new();
    for update in batch.updates() {
        let (sign, entry) = match update {
            KvUpdate::Put(entry) => ('+', entry),
            KvUpdate::Delete(entry) => ('-', entry),
            _ => continue,
        };
        let version = entry.version.as_u64().expect("a number");
        writeln!(text, "{sign} {} {version}", entry.key).expect("text");
    }
    let cursor =
        batch.cursor().map_or_else(|| "-".to_owned(), |cursor| cursor.position().to_string());
    writeln!(text, "end {cursor} {resynced}").expect("text");
    text
}

/// The journal file, and the part that has been read.
pub(super) struct Journal {
    path: PathBuf,
    read: usize,
}

/// The updates that one process has applied.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) batches: Vec<Applied>,
    /// True if the replica resynced.
    pub(super) resynced: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    /// A key with its version, and whether it is live.
    pub(super) updates: Vec<(String, u64, bool)>,
    pub(super) cursor: Option<u64>,
}

impl Journal {
    pub(super) fn open(home: &Path) -> Self {
        Self { path: home.join(FILE), read: 0 }
    }

    /// Reads the entries since the last call.
    pub(super) fn read_on(&mut self) -> Run {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.path) {
            file.read_to_string(&mut text).expect("text");
        }
        let run = Run::parse(&text[self.read..]);
        self.read = text.len();
        run
    }
}

impl Run {
    fn parse(text: &str) -> Self {
        let mut run = Self::default();
        let mut batch = Applied::default();
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["run"] => batch = Applied::default(),
                ["end", cursor, resynced] => {
                    batch.cursor = cursor.parse().ok();
                    run.batches.push(std::mem::take(&mut batch));
                    run.resynced |= resynced == "true";
                }
                [sign @ ("+" | "-"), key, version] => {
                    // The kill can have truncated the last line. No final line follows then.
                    batch.updates.push((
                        key.to_owned(),
                        version.parse().unwrap_or_default(),
                        sign == "+",
                    ));
                }
                _ => {}
            }
        }
        run
    }

    pub(super) fn updates(&self) -> usize {
        self.batches.iter().map(|batch| batch.updates.len()).sum()
    }

    /// Checks that the found content is the earlier one with all updates applied since. The last
    /// batch may be missing, because it may not have been committed. Also checks that no more was
    /// applied than had been missed.
    pub(super) fn explains(&self, before: &Copy, found: &Copy) -> Result<(), String> {
        let mut copy = before.clone();
        let mut previous = None;
        for batch in &self.batches {
            let mut next = copy.clone();
            for (key, version, lives) in &batch.updates {
                if *lives {
                    next.entries.insert(key.clone(), *version);
                } else {
                    next.entries.remove(key);
                }
            }
            next.cursor = batch.cursor;
            previous = Some(std::mem::replace(&mut copy, next));
        }
        if *found != copy && Some(found) != previous.as_ref() {
            return Err("the log is not what was applied".to_owned());
        }
        let Some(from) = before.cursor.filter(|_| !self.resynced) else { return Ok(()) };
        let mut versions: Vec<_> = self
            .batches
            .iter()
            .flat_map(|batch| &batch.updates)
            .map(|(_, version, _)| *version)
            .collect();
        let count = versions.len();
        versions.sort_unstable();
        versions.dedup();
        if versions.len() != count {
            return Err("something was applied twice".to_owned());
        }
        match versions.first() {
            Some(first) if *first <= from => {
                Err(format!("version {first} was applied again, from position {from} on"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "run\n+ a 5\n+ b 6\nend 6 false\n- a 7\nend 7 false\n+ c 8\nend 9 false\n+ d 1";

    fn copy(entries: &[(&str, u64)], cursor: Option<u64>) -> Copy {
        let entries = entries.iter().map(|(key, version)| ((*key).to_owned(), *version)).collect();
        Copy { entries, cursor }
    }

    #[test]
    fn a_log_is_what_was_applied_or_lacks_the_last_batch() {
        let run = Run::parse(TEXT);
        let before = copy(&[("z", 1)], Some(4));
        assert_eq!(run.updates(), 4);
        let last = copy(&[("b", 6), ("c", 8), ("z", 1)], Some(9));
        let one_less = copy(&[("b", 6), ("z", 1)], Some(7));
        assert!(run.explains(&before, &last).is_ok());
        assert!(run.explains(&before, &one_less).is_ok());
        let wrong = [
            before.clone(),
            copy(&[("a", 5), ("b", 6), ("z", 1)], Some(6)),
            // A cursor ahead of the applied updates, one behind them, and none.
            copy(&[("b", 6), ("z", 1)], Some(9)),
            copy(&[("b", 6), ("c", 8), ("z", 1)], Some(10)),
            copy(&[("b", 6), ("c", 8), ("z", 1)], Some(7)),
            copy(&[("b", 6), ("c", 8), ("z", 1)], None),
            copy(&[("b", 6), ("c", 8)], Some(9)),
            copy(&[("b", 6), ("c", 7), ("z", 1)], Some(9)),
            copy(&[("b", 6), ("c", 8), ("d", 1), ("z", 1)], Some(9)),
        ];
        for wrong in wrong {
            assert!(run.explains(&before, &wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn more_than_was_missed_is_found() {
        let before = copy(&[("a", 5), ("b", 6)], Some(6));
        let found = copy(&[("a", 5), ("b", 6), ("c", 8)], Some(9));
        let again = "run\n+ b 6\n+ c 8\nend 9 false\n";
        assert!(Run::parse(again).explains(&before, &found).is_err());
        let resynced = "run\n+ b 6\n+ c 8\nend 9 true\n";
        assert!(Run::parse(resynced).explains(&before, &found).is_ok());
        let twice = "run\n+ c 8\nend 8 false\n+ c 8\nend 9 false\n";
        assert!(Run::parse(twice).explains(&before, &found).is_err());
    }
}
