//! Determines the outcome of a write without an acknowledgement, without I/O (ADR 0002).

/// The newest stream sequence that a write expects of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Anything,
    /// Zero: no message at all.
    Exactly(u64),
}

/// The outcome of a write without an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It took effect at this sequence.
    Landed(u64),
    /// It did not, and cannot any more; the newest sequence of the key is this.
    Lost(u64),
    /// It did not up to now, and a copy takes effect at most once, together with the first.
    NotYet,
    Unknown,
}

/// State of a key in the stream after a write without an acknowledgement, which is not in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// The newest sequence of the key; 0 where there is no message.
    pub(super) newest: u64,
    /// Every message of the key behind the expected one is still there.
    pub(super) complete: bool,
    /// A message of the key may have reached its age since the write was sent, and left nothing
    /// behind.
    pub(super) may_have_aged: bool,
    /// No copy of the write is in flight: the leader that shows this was elected after the last
    /// copy was sent, and an earlier leader can no longer pass on a copy.
    pub(super) is_given_up: bool,
    /// The last sequence of the stream before the write was sent.
    pub(super) known: u64,
}

/// Decides about the outcome of a write from the state of its key.
///
/// A compare-and-swap whose expected sequence is still the newest has not taken effect, and
/// repeating it is safe: at most one of its copies takes effect, however late the first arrives. If
/// messages age, one that expects no message at all is the exception: it may have taken effect and
/// have expired. A superseded compare-and-swap cannot take effect any more. Whether it did so
/// before is known only if every message since then still exists.
///
/// A write without expectation is not repeated while its first copy may be in flight, in a proxy or
/// a stopped server: it would take effect a second time, over later writes of others. It is
/// repeated only if the stream has had another leader since, so that no copy is left, and the
/// newest message of the key is older than the write, so that no copy has landed (ADR 0059).
pub(super) fn decide(expect: Expect, evidence: &Evidence) -> Outcome {
    match expect {
        Expect::Exactly(0) if evidence.newest == 0 && evidence.may_have_aged => Outcome::Unknown,
        Expect::Exactly(expected) if evidence.newest == expected => Outcome::NotYet,
        Expect::Exactly(_) if evidence.complete => Outcome::Lost(evidence.newest),
        Expect::Anything
            if evidence.is_given_up
                && !evidence.may_have_aged
                && evidence.newest <= evidence.known =>
        {
            Outcome::NotYet
        }
        _ => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(newest: u64) -> Evidence {
        Evidence { newest, complete: false, may_have_aged: false, is_given_up: false, known: 0 }
    }

    #[test]
    fn a_swap_whose_expectation_still_holds_may_be_repeated() {
        assert_eq!(decide(Expect::Exactly(7), &evidence(7)), Outcome::NotYet);
        assert_eq!(decide(Expect::Exactly(0), &evidence(0)), Outcome::NotYet);
        let aged = |newest| Evidence { may_have_aged: true, ..evidence(newest) };
        assert_eq!(decide(Expect::Exactly(0), &aged(0)), Outcome::Unknown);
        // The expected message is older than the write, and still exists.
        assert_eq!(decide(Expect::Exactly(7), &aged(7)), Outcome::NotYet);
    }

    #[test]
    fn a_swap_that_was_overtaken_is_lost_only_where_that_is_certain() {
        assert_eq!(decide(Expect::Exactly(7), &evidence(9)), Outcome::Unknown);
        assert_eq!(decide(Expect::Exactly(7), &evidence(0)), Outcome::Unknown);
        let complete = Evidence { complete: true, ..evidence(9) };
        assert_eq!(decide(Expect::Exactly(7), &complete), Outcome::Lost(9));
    }

    #[test]
    fn write_without_expectation_is_repeated_if_no_copy_is_left() {
        for evidence in
            [evidence(0), evidence(7), Evidence { complete: true, known: 9, ..evidence(7) }]
        {
            assert_eq!(decide(Expect::Anything, &evidence), Outcome::Unknown);
        }
        let given_up = |newest| Evidence { is_given_up: true, known: 7, ..evidence(newest) };
        assert_eq!(decide(Expect::Anything, &given_up(7)), Outcome::NotYet);
        assert_eq!(decide(Expect::Anything, &given_up(0)), Outcome::NotYet);
        // It may have landed before that one.
        assert_eq!(decide(Expect::Anything, &given_up(8)), Outcome::Unknown);
        let aged = Evidence { may_have_aged: true, ..given_up(0) };
        assert_eq!(decide(Expect::Anything, &aged), Outcome::Unknown);
    }
}
