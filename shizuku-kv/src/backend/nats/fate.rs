//! What became of a write that was not acknowledged: the decision, without I/O.

/// What a write expects the newest stream sequence of its key to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Anything,
    /// Zero: no message at all.
    Exactly(u64),
}

/// What became of a write that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It took effect at this sequence.
    Landed(u64),
    /// It did not, and cannot any more; the newest sequence of the key is this.
    Lost(u64),
    /// It did not up to now, and a copy takes effect at most once, together with the first.
    NotYet,
    Unknown,
}

/// What the stream shows of a key after a write was not acknowledged, none of it being that write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// The newest sequence of the key; 0 where there is no message.
    pub(super) newest: u64,
    /// Every message of the key behind the expected one is still there.
    pub(super) complete: bool,
    /// A message of the key may have reached its age since the write was sent, and left nothing behind.
    pub(super) may_have_aged: bool,
}

/// The decision, without which a lost acknowledgement would be a guess.
///
/// A compare-and-swap whose expected sequence is still the newest has not taken effect, and repeating it is safe: of all
/// its copies one takes effect at most, however late the first arrives. One that expects no message at all is the
/// exception where messages age: it may have taken effect and be gone. A compare-and-swap that was overtaken cannot take
/// effect any more; whether it had done so before can be told only if everything since is still there. A write without
/// expectation is never repeated: its first copy may still be on its way, in a proxy or a stopped server, and would then
/// take effect a second time, over what others wrote meanwhile.
pub(super) fn decide(expect: Expect, evidence: &Evidence) -> Fate {
    match expect {
        Expect::Exactly(0) if evidence.newest == 0 && evidence.may_have_aged => Fate::Unknown,
        Expect::Exactly(expected) if evidence.newest == expected => Fate::NotYet,
        Expect::Exactly(_) if evidence.complete => Fate::Lost(evidence.newest),
        _ => Fate::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(newest: u64) -> Evidence {
        Evidence { newest, complete: false, may_have_aged: false }
    }

    #[test]
    fn a_swap_whose_expectation_still_holds_may_be_repeated() {
        assert_eq!(decide(Expect::Exactly(7), &evidence(7)), Fate::NotYet);
        assert_eq!(decide(Expect::Exactly(0), &evidence(0)), Fate::NotYet);
        let aged = |newest| Evidence { may_have_aged: true, ..evidence(newest) };
        assert_eq!(decide(Expect::Exactly(0), &aged(0)), Fate::Unknown);
        // What is expected is older than the write, and still there.
        assert_eq!(decide(Expect::Exactly(7), &aged(7)), Fate::NotYet);
    }

    #[test]
    fn a_swap_that_was_overtaken_is_lost_only_where_that_is_certain() {
        assert_eq!(decide(Expect::Exactly(7), &evidence(9)), Fate::Unknown);
        assert_eq!(decide(Expect::Exactly(7), &evidence(0)), Fate::Unknown);
        let complete = Evidence { complete: true, ..evidence(9) };
        assert_eq!(decide(Expect::Exactly(7), &complete), Fate::Lost(9));
    }

    #[test]
    fn a_write_without_expectation_is_never_repeated() {
        for evidence in [evidence(0), evidence(7), Evidence { complete: true, ..evidence(7) }] {
            assert_eq!(decide(Expect::Anything, &evidence), Fate::Unknown);
        }
    }
}
