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
    /// It did not up to now. A copy that expects this sequence takes effect at most once, together with the first.
    NotYet(u64),
    Unknown,
}

/// What the stream shows of a key after a write was not acknowledged, none of it being that write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// The newest sequence of the key; 0 where there is no message.
    pub(super) newest: u64,
    /// What this client knew to be taken before it sent the write.
    pub(super) observed: u64,
    /// Every message of the key behind the expected sequence is still there.
    pub(super) complete: bool,
    /// Requests arrive in the order in which they were sent.
    pub(super) single_server: bool,
}

/// The decision, without which a lost acknowledgement would be a guess.
///
/// Sequences only grow, so that a message at or below `observed` was there before the write was sent: if that is the
/// newest of the key, then nothing has been written since, this write included. A compare-and-swap whose expected
/// sequence is no longer the newest cannot take effect any more; whether it had done so before can be told only if
/// everything since is still there. A write without expectation is repeated only as a compare-and-swap against what is
/// there, and only where its first copy cannot overtake that.
pub(super) fn decide(expect: Expect, evidence: &Evidence) -> Fate {
    let nothing_since = evidence.newest <= evidence.observed;
    match expect {
        Expect::Exactly(expected) if evidence.newest == expected => Fate::NotYet(expected),
        Expect::Exactly(_) if nothing_since || evidence.complete => Fate::Lost(evidence.newest),
        Expect::Anything if nothing_since && evidence.single_server => Fate::NotYet(evidence.newest),
        _ => Fate::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(newest: u64, observed: u64) -> Evidence {
        Evidence { newest, observed, complete: false, single_server: true }
    }

    #[test]
    fn a_swap_whose_expectation_still_holds_may_be_repeated() {
        assert_eq!(decide(Expect::Exactly(7), &evidence(7, 7)), Fate::NotYet(7));
        assert_eq!(decide(Expect::Exactly(0), &evidence(0, 9)), Fate::NotYet(0));
    }

    #[test]
    fn a_swap_that_was_overtaken_is_lost_only_where_that_is_certain() {
        // Something newer than anything known before: it may have replaced ours.
        assert_eq!(decide(Expect::Exactly(7), &evidence(9, 8)), Fate::Unknown);
        // It was there before ours was sent.
        assert_eq!(decide(Expect::Exactly(7), &evidence(8, 8)), Fate::Lost(8));
        let complete = Evidence { complete: true, ..evidence(9, 7) };
        assert_eq!(decide(Expect::Exactly(7), &complete), Fate::Lost(9));
    }

    #[test]
    fn a_write_without_expectation_is_repeated_only_where_nothing_can_overtake_it() {
        assert_eq!(decide(Expect::Anything, &evidence(7, 7)), Fate::NotYet(7));
        assert_eq!(decide(Expect::Anything, &evidence(8, 7)), Fate::Unknown);
        let clustered = Evidence { single_server: false, ..evidence(7, 7) };
        assert_eq!(decide(Expect::Anything, &clustered), Fate::Unknown);
    }
}
