//! The frame of tests that kill a process while it commits batches: the batches, the expected
//! state, and both sides of the pipe.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::Child;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shizuku_kv::{Key, KvEntry, KvOperation, KvUpdate, VersionToken, WatchCursor};
use shizuku_kv_tests::Random;

/// Key whose value is the number of the last batch.
pub(crate) const NUMBER: &str = "batch";

const OPENS: &str = "opens";

/// Prefix of the number of each acknowledged batch. The line ends with a full stop, because it may
/// be cut.
const ACKNOWLEDGED: &str = "acknowledged ";

/// Returns the changes of a batch, which depend only on its number.
pub(crate) fn batch(number: u64) -> Vec<KvUpdate> {
    let time = UNIX_EPOCH + Duration::new(number, 7);
    let version = VersionToken::from_u64(number);
    let put = |key: String, value: Vec<u8>| -> KvUpdate {
        KvEntry::put(Key::new(key).unwrap(), value.into(), version, time).into()
    };
    let mut random = Random::from_seed(number);
    // Some are so large that a log writes them in parts.
    let (len, longest) = if number % 40 == 17 { (400, 8000) } else { (random.below(40), 600) };
    let mut updates = vec![put(NUMBER.to_owned(), number.to_be_bytes().to_vec())];
    for _ in 0..len {
        let key = format!("key.{}", random.below(300));
        updates.push(match random.below(4) {
            0 => {
                let key = Key::new(key).unwrap();
                KvEntry::tombstone(key, KvOperation::Delete, version, time).into()
            }
            _ => put(key, vec![random.below(256) as u8; random.below(longest) as usize]),
        });
    }
    updates
}

/// Returns the cursor after a batch.
pub(crate) fn cursor(number: u64) -> WatchCursor {
    WatchCursor::new([3; 16], number, SystemTime::UNIX_EPOCH)
}

/// The state after a batch.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) number: u64,
    pub(crate) state: BTreeMap<Key, KvEntry>,
}

impl Model {
    pub(crate) fn go_to(&mut self, number: u64) {
        while self.number < number {
            self.number += 1;
            for update in batch(self.number) {
                match update {
                    KvUpdate::Put(entry) => drop(self.state.insert(entry.key.clone(), entry)),
                    KvUpdate::Delete(entry) => drop(self.state.remove(&entry.key)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// Prints a line. Ends this process if its parent is gone.
fn say(line: &str) {
    // Flushes, because the output is a pipe with a block buffer.
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Tells the parent that this process opens its file.
pub(crate) fn opens() {
    say(OPENS);
}

/// Tells the parent that a batch is committed.
pub(crate) fn acknowledge(number: u64) {
    say(&format!("{ACKNOWLEDGED}{number}."));
}

/// Kills a process after it has acknowledged this many batches, or while it opens its file. Returns
/// the last batch that it has acknowledged.
pub(crate) fn killed_after(mut child: Child, batches: u64) -> Option<u64> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut opens, mut count, mut last) = (false, 0, None);
    // Reads to the end, because it may have acknowledged more before it was dead.
    for line in lines.map_while(Result::ok) {
        let number = line.strip_prefix(ACKNOWLEDGED).and_then(|rest| rest.strip_suffix('.'));
        // The start of a line may be output of the test harness.
        opens |= line.ends_with(OPENS);
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            (count, last) = (count + 1, Some(number));
        }
        if opens && count >= batches {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(!status.success() && opens && count >= batches, "it ended by itself: {status}");
    last
}
