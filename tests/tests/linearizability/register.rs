//! What a key is when its operations happen one after the other: the specification that histories are compared with.

use stateright::semantics::SequentialSpec;

/// An entry as a client knows it: each write has a number of its own, which is its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) version: u64,
    pub(crate) write: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    /// Writes where nothing lives.
    Create {
        write: usize,
    },
    /// Writes where the newest entry is the expected one, which may be a tombstone.
    Swap {
        expected: Known,
        write: usize,
    },
    /// Leaves a tombstone where the newest entry is the expected one.
    Delete {
        expected: Known,
        write: usize,
    },
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// What lives there.
    Found(Option<Known>),
    /// It took effect with this version.
    Written(u64),
    /// It did not take effect, because of what was there.
    Mismatch,
    /// It took effect and nobody was told.
    Unseen,
}

/// One key with everything that was ever written to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Register {
    newest: Option<Newest>,
    /// The highest version that anybody was told.
    highest: u64,
}

/// The newest entry, a tombstone too.
#[derive(Clone, Copy, Debug)]
struct Newest {
    write: usize,
    /// Not known of a write that took effect unseen, until somebody finds it.
    version: Option<u64>,
    lives: bool,
}

impl Register {
    /// Whether an operation takes effect now.
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

    /// Whether a read finds this now, and takes note of a version that was not known.
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

    /// What an operation does of which nobody was told.
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
