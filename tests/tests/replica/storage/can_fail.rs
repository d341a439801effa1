//! Tests that the suite finds faults: the intended checks report each fault.

use std::sync::Arc;

use shizuku_kv::conformance::storage::{StorageSuite, checks};
use shizuku_kv_tests::missed;

use crate::storage::broken::{Broken, Disk, Fault};

/// The check that finds likely faults in random histories.
const RANDOM: &str = "random_histories_end_as_in_a_map";

/// Each fault, and checks that must fail on it.
const FAULTS: &[(Fault, &[&str])] = &[
    // Queries.
    (
        Fault::BeginsWithSomething,
        &["an_empty_storage_holds_nothing", "an_empty_storage_opens_again_as_one"],
    ),
    (Fault::NeverEmptyAgain, &["a_deletion_removes_the_entry", "a_deleted_key_stays_deleted"]),
    (Fault::AlwaysEmpty, &["a_put_is_held", "an_empty_value_is_held"]),
    (Fault::CountsDeleted, &["a_deletion_removes_the_entry"]),
    (Fault::HeldSorted, &["held_answers_in_the_order_of_the_keys"]),
    (
        Fault::HeldLeavesOut,
        &["an_empty_storage_holds_nothing", "held_answers_in_the_order_of_the_keys"],
    ),
    (Fault::HeldIsShort, &["many_keys_fit_into_one_commit", "many_keys_come_over_many_commits"]),
    (Fault::HeldRepeats, &["held_answers_in_the_order_of_the_keys"]),
    (Fault::VisitsTwice, &["every_key_is_visited_once"]),
    (Fault::VisitsTooFew, &["every_key_is_visited_once", "a_put_is_held"]),
    (Fault::VisitsDeleted, &["a_deletion_removes_the_entry", "every_key_is_visited_once"]),
    (Fault::VisitsMixedUp, &["every_key_is_visited_once"]),
    // Changes.
    (Fault::KeepsGreaterVersions, &["a_smaller_version_replaces_too"]),
    (Fault::KeepsSameVersions, &["a_time_alone_makes_a_difference"]),
    (Fault::KeepsTheFirst, &["a_put_replaces_the_entry"]),
    (Fault::IgnoresDeletions, &["a_deletion_removes_the_entry"]),
    (Fault::IgnoresExpiry, &["a_deletion_removes_the_entry"]),
    (Fault::IgnoresOldDeletions, &["a_deletion_removes_the_entry"]),
    (Fault::DeletesChildren, &["changes_of_other_keys_change_nothing"]),
    (Fault::DeletionNeedsKey, &["a_deletion_of_an_absent_key_changes_nothing"]),
    (Fault::DeletesForEver, &["a_deleted_key_can_be_held_again"]),
    (Fault::FirstChangeCounts, &["the_last_change_of_a_key_counts"]),
    (Fault::DeletionsFirst, &["the_last_change_of_a_key_counts"]),
    (Fault::StopsAtMarker, &["the_marker_changes_nothing"]),
    (Fault::ForgetsAtMarker, &["the_marker_changes_nothing"]),
    (Fault::IgnoresEmptyCommits, &["a_commit_of_nothing_moves_the_checkpoint"]),
    (Fault::ShortCommits, &["many_keys_fit_into_one_commit"]),
    (Fault::FewKeys, &["many_keys_fit_into_one_commit", "many_keys_come_over_many_commits"]),
    (Fault::OneForAll, &["storages_are_their_own"]),
    // Data.
    (Fault::EmptyIsDeleted, &["an_empty_value_is_held"]),
    (Fault::SmallValues, &["large_values_are_accepted"]),
    (Fault::CutsAtZero, &["values_come_back_as_they_were"]),
    (Fault::KeepsValues, &["values_come_back_as_they_were"]),
    (Fault::WholeSeconds, &["times_come_back_as_they_were"]),
    (Fault::TimesAfter1970, &["times_come_back_as_they_were"]),
    (Fault::TimesIn64Bits, &["times_come_back_as_they_were"]),
    (Fault::NumericVersions, &["versions_come_back_as_they_were"]),
    (Fault::PaddedVersions, &["versions_come_back_as_they_were"]),
    (Fault::ShortKeys, &["the_longest_keys_are_held"]),
    (
        Fault::IgnoresCase,
        &["every_character_of_a_key_is_kept", "changes_of_other_keys_change_nothing"],
    ),
    // Checkpoints.
    (Fault::KeepsCheckpoint, &["a_commit_without_a_checkpoint_leaves_none"]),
    (Fault::FirstCheckpoint, &["the_checkpoint_is_that_of_the_last_commit"]),
    (Fault::CheckpointsNeverGoBack, &["the_checkpoint_is_that_of_the_last_commit"]),
    (
        Fault::CheckpointsWithoutScope,
        &["checkpoints_come_back_as_they_were", "the_checkpoint_is_that_of_the_last_commit"],
    ),
    (Fault::NoCheckpoint, &["the_checkpoint_is_that_of_the_last_commit"]),
    // Reopening.
    (
        Fault::ForgetsAll,
        &[
            "every_entry_is_found_again",
            "no_checkpoint_stays_no_checkpoint",
            "many_keys_are_there_again",
        ],
    ),
    (Fault::ForgetsCheckpoint, &["every_entry_is_found_again"]),
    (Fault::ForgetsLastCheckpoint, &["every_entry_is_found_again"]),
    (Fault::ForgetsDeletions, &["a_deleted_key_stays_deleted"]),
    (
        Fault::ForgetsLastCommit,
        &["every_entry_is_found_again", "no_checkpoint_stays_no_checkpoint"],
    ),
    (Fault::FindsCheckpointAgain, &["no_checkpoint_stays_no_checkpoint"]),
    (Fault::LosesOneAtOpening, &["every_entry_is_found_again"]),
    (Fault::OpensOnce, &["opening_again_and_again_changes_nothing"]),
];

fn suite(fault: Fault) -> StorageSuite<Broken> {
    let disk = Disk::default();
    let suite = StorageSuite::new(move |name| {
        let disk = Arc::clone(&disk);
        async move { Ok(Broken::open(fault, name, disk)) }
    });
    suite.reading(|storage, key| Ok(storage.entry(key))).histories(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_found_and_every_check_finds_one() {
    let mut reports = Vec::new();
    for (fault, expected) in FAULTS {
        let suite = expected.iter().fold(suite(*fault), |suite, check| suite.only(*check));
        reports.push((*fault, *expected, suite.run().await));
    }
    let missed = missed(&reports, checks().map(|check| check.name), &[RANDOM]);
    assert!(missed.is_empty(), "{missed}");
}

#[tokio::test]
async fn storage_without_a_fault_passes() {
    let report = suite(Fault::None).run().await;
    assert!(report.is_ok(), "{report}");
}

/// Random histories find likely faults, whatever the seed.
#[tokio::test]
async fn random_histories_find_faults_too() {
    for fault in [
        Fault::KeepsGreaterVersions,
        Fault::IgnoresDeletions,
        Fault::KeepsCheckpoint,
        Fault::FirstChangeCounts,
    ] {
        let report = suite(fault).only(RANDOM).histories(4).run().await;
        assert!(!report.is_ok(), "{RANDOM} does not find {fault:?}:\n{report}");
        assert!(
            report.to_string().contains("SHIZUKU_SEED="),
            "the report names no seed:\n{report}"
        );
    }
}

/// A given seed repeats the same histories.
#[tokio::test]
async fn seed_repeats_the_histories() {
    let run = || suite(Fault::IgnoresDeletions).only(RANDOM).seed(7).run();
    let messages = [run().await, run().await].map(|report| {
        let shizuku_kv::conformance::Outcome::Failed(failure) = &report.checks()[0].outcome else {
            panic!("{report}");
        };
        failure.message().to_owned()
    });
    assert_eq!(messages[0], messages[1]);
}
