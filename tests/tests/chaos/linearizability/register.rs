//! The sequential specification of a key, with which histories are compared.

use serde::{Deserialize, Serialize};
use stateright::semantics::SequentialSpec;

/// An entry as a client knows it. Each write has a unique number, which is its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) version: u64,
    pub(crate) write: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    Read,
    /// Writes if the key is not live.
    Create {
        write: usize,
    },
    /// Writes if the newest entry is the expected one, which may be a tombstone.
    Swap {
        expected: Known,
        write: usize,
    },
    /// Leaves a tombstone if the newest entry is the expected one.
    Delete {
        expected: Known,
        write: usize,
    },
}

/// The answer to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The live entry.
    Found(Option<Known>),
    /// It took effect with this version.
    Written(u64),
    /// It did not take effect, because of the existing entry.
    Mismatch,
    /// It took effect without an answer.
    Unseen,
}

/// One key with everything that was ever written to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Register {
    newest: Option<Newest>,
    /// The highest version in any answer.
    highest: u64,
}

/// The newest entry, possibly a tombstone.
#[derive(Clone, Copy, Debug)]
struct Newest {
    write: usize,
    /// Unknown for a write that took effect unseen, until a read finds it.
    version: Option<u64>,
    lives: bool,
}

impl Register {
    /// Returns true if an operation takes effect now.
    fn admits(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Read => false,
            Operation::Create { .. } => self.newest.is_none_or(|newest| !newest.lives),
            Operation::Swap { expected, .. } => self.is_newest(*expected).is_some(),
            Operation::Delete { expected, .. } => {
                self.is_newest(*expected).is_some_and(|newest| newest.lives)
            }
        }
    }

    fn is_newest(&self, known: Known) -> Option<Newest> {
        let version_fits = |newest: &Newest| match newest.version {
            Some(version) => version == known.version,
            None => known.version > self.highest,
        };
        self.newest.filter(|newest| newest.write == known.write).filter(version_fits)
    }

    fn apply(&mut self, operation: &Operation, version: Option<u64>) {
        let (write, lives, expected) = match *operation {
            Operation::Read => return,
            Operation::Create { write } => (write, true, None),
            Operation::Swap { expected, write } => (write, true, Some(expected)),
            Operation::Delete { expected, write } => (write, false, Some(expected)),
        };
        let told = expected.map(|expected| expected.version).into_iter().chain(version);
        self.highest = told.fold(self.highest, u64::max);
        self.newest = Some(Newest { write, version, lives });
    }

    /// Returns true if a read finds this now. Records a version that was unknown.
    fn shows(&mut self, found: Option<Known>) -> bool {
        let Some(known) = found else {
            return self.newest.is_none_or(|newest| !newest.lives);
        };
        let Some(newest) = self.is_newest(known).filter(|newest| newest.lives) else {
            return false;
        };
        self.newest = Some(Newest { version: Some(known.version), ..newest });
        self.highest = self.highest.max(known.version);
        true
    }
}

impl SequentialSpec for Register {
    type Op = Operation;
    type Ret = Answer;

    /// Applies an operation without an answer.
    fn invoke(&mut self, operation: &Operation) -> Answer {
        if !self.admits(operation) {
            return Answer::Mismatch;
        }
        self.apply(operation, None);
        Answer::Unseen
    }

    fn is_valid_step(&mut self, operation: &Operation, answer: &Answer) -> bool {
        match (operation, *answer) {
            (Operation::Read, Answer::Found(found)) => self.shows(found),
            (_, Answer::Mismatch) => *operation != Operation::Read && !self.admits(operation),
            (_, Answer::Written(version)) => {
                let is_valid = self.admits(operation) && version > self.highest;
                if is_valid {
                    self.apply(operation, Some(version));
                }
                is_valid
            }
            _ => false,
        }
    }
}
