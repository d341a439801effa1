//! Tests that the conformance suite finds faults: the intended checks report each fault (ADR 0015).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::panic_in_result_fn,
    reason = "tests report by panicking"
)]

mod broken;

use std::collections::BTreeSet;
use std::time::Duration;

use broken::{Fault, broken};
use shizuku_kv::conformance::{Outcome, Report, Suite, checks};
use shizuku_kv::connect;
use shizuku_kv_tests::missed;

/// Each fault, and checks that must fail on it.
const FAULTS: &[(Fault, &[&str])] = &[
    (
        Fault::FalselyModest,
        &[
            "create_makes_an_absent_key",
            "an_empty_store_is_caught_up",
            "history_is_bounded",
            "times_to_live_are_asked_for",
            "fenced_writes_are_there",
        ],
    ),
    // Keys.
    (Fault::IgnoresCase, &["similar_keys_are_different_keys", "every_allowed_character_works"]),
    (Fault::ShortKeys, &["the_longest_key_works"]),
    (Fault::NarrowKeys, &["every_allowed_character_works"]),
    (
        Fault::WritesAtOpening,
        &[
            "invalid_keys_are_rejected_by_writes",
            "invalid_keys_are_rejected_with_a_time_to_live",
            "invalid_keys_are_rejected_by_fenced_writes",
            "an_empty_store_has_nothing_to_list",
            "a_store_made_again_is_empty",
        ],
    ),
    // Values.
    (Fault::EmptyIsDeleted, &["an_empty_value_is_a_value", "an_empty_value_arrives_at_a_watch"]),
    (Fault::CreateOverEmpty, &["an_empty_value_cannot_be_created_over"]),
    (Fault::CutsAtZero, &["any_bytes_come_back"]),
    (
        Fault::LimitLies,
        &[
            "a_value_of_the_limit_fits",
            "a_value_over_the_limit_is_rejected",
            "a_swapped_value_over_the_limit_is_rejected",
            "the_default_limit_is_true",
            "a_fenced_value_over_the_limit_is_rejected",
        ],
    ),
    (Fault::HalfTheLimit, &["a_value_of_the_limit_fits"]),
    (Fault::ShowsValues, &["values_are_never_shown"]),
    // Versions.
    (
        Fault::OneVersion,
        &[
            "every_write_changes_the_version",
            "a_version_never_comes_back",
            "versions_can_be_stored",
            "concurrent_puts_all_take_effect",
        ],
    ),
    (
        Fault::OldVersionOfDeletion,
        &[
            "every_write_changes_the_version",
            "reads_return_the_version_that_the_write_returned",
            "delete_leaves_a_tombstone",
        ],
    ),
    (Fault::OldVersionOfPut, &["reads_return_the_version_that_the_write_returned", "put_then_get"]),
    (
        Fault::ShiftedVersions,
        &[
            "swaps_return_the_version_of_their_entry",
            "create_makes_an_absent_key",
            "versions_are_positions_of_cursors",
        ],
    ),
    // Writes.
    (
        Fault::LostUpdate,
        &[
            "update_with_another_version_is_rejected",
            "update_of_a_deleted_key_is_rejected",
            "no_update_is_lost",
            "a_version_never_comes_back",
        ],
    ),
    (
        Fault::UpdateCreates,
        &["swaps_of_a_key_never_written_are_rejected", "update_of_a_deleted_key_is_rejected"],
    ),
    (Fault::UpdateRejectsTombstones, &["update_over_the_tombstone_itself_succeeds"]),
    (Fault::UpdateWritesAnyway, &["update_with_another_version_is_rejected", "swaps_arrive_live"]),
    (
        Fault::CreateOverwrites,
        &["create_over_a_live_value_is_rejected", "one_of_many_creates_wins"],
    ),
    (
        Fault::CreateRejectsTombstones,
        &["create_over_a_tombstone_succeeds", "an_expired_key_can_be_created"],
    ),
    (Fault::CreateRaces, &["one_of_many_creates_wins", "create_and_update_do_not_both_win"]),
    (Fault::CreateTriesOnce, &["create_against_deletions_does_not_fail"]),
    (Fault::DeleteNeedsValue, &["deleting_what_is_absent_succeeds"]),
    (Fault::DeleteDoesNothing, &["delete_leaves_a_tombstone", "scans_have_live_keys_only"]),
    (
        Fault::DeleteIgnoresVersion,
        &["delete_with_another_version_is_rejected", "one_of_many_deletions_wins"],
    ),
    (Fault::DeleteNeverMatches, &["delete_with_version_swaps"]),
    (Fault::PurgeIsDelete, &["purge_drops_the_history", "delete_leaves_a_tombstone"]),
    (Fault::PurgeTakesChildren, &["similar_keys_are_different_keys"]),
    (Fault::PutTwice, &["history_is_the_oldest_first", "history_is_bounded"]),
    (Fault::PutKeepsOld, &["put_then_get"]),
    (Fault::PutManyShuffled, &["put_many_answers_in_order", "put_many_answers_for_each_item"]),
    (Fault::PutManyStops, &["put_many_answers_in_order", "put_many_answers_for_each_item"]),
    (Fault::PutManyBackwards, &["put_many_keeps_the_order_of_a_key"]),
    (Fault::WriteManyIgnoresConditions, &["write_many_makes_every_kind_of_write"]),
    (Fault::CombinationsSimplified, &["rejected_combinations_change_nothing"]),
    (Fault::MetadataDropped, &["entries_carry_author_and_reason"]),
    (Fault::AllIsEach, &["unclaimed_atomic_writes_are_rejected"]),
    // Reads.
    (
        Fault::StaleReads,
        &["a_store_reads_its_own_writes", "the_leader_reads_its_own_writes", "put_then_get"],
    ),
    (
        Fault::ForgetsTombstones,
        &["entry_shows_tombstones", "delete_leaves_a_tombstone", "expiry_leaves_a_tombstone"],
    ),
    (Fault::FindsEverything, &["what_was_never_written_is_absent"]),
    (Fault::FiguresWithoutTombstones, &["figures_count_every_key_that_has_an_entry"]),
    (Fault::IncarnationOfAll, &["the_incarnation_is_that_of_cursors"]),
    (Fault::GetManySorted, &["get_many_keeps_the_order"]),
    (Fault::GetManyShort, &["get_many_takes_many_keys"]),
    (Fault::HistoryBackwards, &["history_is_the_oldest_first"]),
    (Fault::HistoryIsOne, &["history_is_bounded", "history_is_of_one_key"]),
    (Fault::HistoryIsLonger, &["history_is_bounded", "history_is_one_by_default"]),
    (Fault::HistoryOfChildren, &["history_is_of_one_key"]),
    // Scans.
    (Fault::ScanRepeats, &["scans_have_live_keys_only", "a_scan_keeps_to_its_scope"]),
    (Fault::ScanIsShort, &["scans_take_many_keys", "a_dropped_scan_leaves_nothing_behind"]),
    (
        Fault::ScanSkipsOverwritten,
        &[
            "a_scan_under_writes_has_every_key_once",
            "a_listing_under_writes_has_every_key_once",
            "a_scan_next_to_writers_has_every_key_once",
        ],
    ),
    (
        Fault::ScanRepeatsOverwritten,
        &["a_scan_under_writes_has_every_key_once", "a_listing_under_writes_has_every_key_once"],
    ),
    (Fault::ScanEndsAtRemoved, &["a_scan_in_a_history_under_writes_has_every_key_once"]),
    (Fault::ScanHasHistory, &["a_scan_in_a_history_has_the_newest"]),
    (Fault::ScanHangs, &["an_empty_store_has_nothing_to_list", "reads_end_by_their_deadline"]),
    (Fault::ScanEndsEarly, &["reads_end_by_their_deadline"]),
    // Scopes.
    (
        Fault::TokenPrefixes,
        &[
            "a_scan_keeps_to_its_scope",
            "a_listing_keeps_to_its_scope",
            "the_state_of_a_watch_keeps_to_its_scope",
            "live_updates_keep_to_their_scope",
        ],
    ),
    (
        Fault::KeyHasChildren,
        &["a_scan_keeps_to_its_scope", "the_state_of_a_watch_keeps_to_its_scope"],
    ),
    (
        Fault::OverlapsTwice,
        &[
            "a_scan_keeps_to_its_scope",
            "a_listing_keeps_to_its_scope",
            "the_state_of_a_watch_keeps_to_its_scope",
            "live_updates_keep_to_their_scope",
        ],
    ),
    (Fault::ScopeEndsWithState, &["live_updates_keep_to_their_scope"]),
    // Watches.
    (
        Fault::NoMarker,
        &[
            "an_empty_store_is_caught_up",
            "the_state_comes_first",
            "an_idle_store_is_caught_up_at_once",
        ],
    ),
    (
        Fault::NoMarkerWhenEmpty,
        &[
            "an_empty_store_is_caught_up",
            "an_empty_scope_is_caught_up",
            "an_idle_store_is_caught_up_at_once",
        ],
    ),
    (Fault::ManyMarkers, &["the_marker_comes_once"]),
    (
        Fault::EarlyMarker,
        &[
            "the_marker_comes_after_every_key",
            "the_marker_of_a_resumed_watch_comes_after_every_change",
        ],
    ),
    (Fault::StateEndsAtRemoved, &["the_marker_comes_after_every_key_in_a_history"]),
    (Fault::MarkerFirst, &["the_state_comes_first", "resuming_in_the_state_delivers_the_rest"]),
    (Fault::StateIsHistory, &["the_state_is_no_history"]),
    (Fault::DuplicatedUpdate, &["changes_arrive_live", "the_last_write_always_arrives"]),
    (Fault::GoesBack, &["the_last_write_always_arrives", "a_slow_reader_ends_at_the_final_state"]),
    (
        Fault::LosesFirstLive,
        &["changes_arrive_live", "swaps_arrive_live", "an_empty_store_is_caught_up"],
    ),
    (
        Fault::LosesSome,
        &["the_last_write_always_arrives", "nothing_is_lost_between_state_and_live"],
    ),
    (Fault::DropsDeletions, &["changes_arrive_live", "swaps_arrive_live"]),
    (Fault::DropsValues, &["changes_arrive_live", "the_state_comes_first"]),
    (Fault::LosesAfterPending, &["a_next_that_is_dropped_loses_nothing"]),
    (Fault::OneWatchOnly, &["watches_are_independent"]),
    (Fault::LossyBuffer, &["a_slow_reader_ends_at_the_final_state"]),
    (Fault::EndsSilently, &["a_watch_ends_with_its_store", "shutdown_ends_watches"]),
    (Fault::WaitsForGoneStore, &["a_watch_ends_with_its_store", "shutdown_ends_watches"]),
    (Fault::WatchHangs, &["an_empty_store_is_caught_up", "changes_arrive_live"]),
    // Cursors.
    (
        Fault::ForgetsIncarnation,
        &[
            "a_cursor_of_another_store_has_expired",
            "a_cursor_of_an_earlier_incarnation_has_expired",
            "a_cursor_ahead_of_the_store_has_expired",
            "deletions_under_other_settings_are_not_skipped",
        ],
    ),
    (
        Fault::SkipsForward,
        &[
            "resuming_delivers_what_came_after",
            "an_old_cursor_skips_nothing",
            "deletions_after_a_cursor_are_not_skipped",
            "cursors_can_be_stored",
        ],
    ),
    (
        Fault::ResumesFromStart,
        &["resuming_delivers_what_came_after", "a_cursor_of_another_store_has_expired"],
    ),
    (Fault::StateCursorIsEnd, &["resuming_in_the_state_delivers_the_rest"]),
    (Fault::ResumeForgetsScope, &["resuming_keeps_to_the_scope"]),
    (
        Fault::ResumeForgetsDeletions,
        &["deletions_after_a_cursor_are_not_skipped", "resuming_delivers_what_came_after"],
    ),
    (Fault::ResumedCursorStays, &["cursors_can_be_chained"]),
    (Fault::CursorUsedOnce, &["an_idle_store_is_caught_up_at_once"]),
    // Expiry.
    (Fault::NeverExpires, &["a_value_expires_after_its_time_to_live", "expiry_arrives_at_a_watch"]),
    (Fault::RenewalForgetsTtl, &["a_renewed_value_lives_on"]),
    (Fault::RenewalIgnored, &["a_renewed_value_lives_on", "swaps_with_a_time_to_live_compare"]),
    (Fault::TtlIgnoresVersions, &["swaps_with_a_time_to_live_compare"]),
    (Fault::EverythingExpires, &["others_do_not_expire"]),
    (
        Fault::SilentExpiry,
        &[
            "expiry_arrives_at_a_watch",
            "expiry_while_away_is_not_skipped",
            "the_maximum_age_arrives_at_a_watch",
        ],
    ),
    (Fault::ExpiryIsDelete, &["expiry_arrives_at_a_watch", "the_maximum_age_arrives_at_a_watch"]),
    (Fault::ExpiryForgotten, &["expiry_leaves_a_tombstone"]),
    (Fault::ExpiresEarly, &["others_do_not_expire", "values_expire_after_the_maximum_age"]),
    (
        Fault::ForgetsMaxAge,
        &["values_expire_after_the_maximum_age", "the_maximum_age_arrives_at_a_watch"],
    ),
    (Fault::TtlUnasked, &["times_to_live_are_asked_for"]),
    (Fault::TtlAnyLength, &["a_time_to_live_below_the_granularity_is_rejected"]),
    (Fault::TtlOverAge, &["a_time_to_live_over_the_maximum_age_is_rejected"]),
    (Fault::DeletionTwice, &["a_deletion_is_told_of_once"]),
    // Fenced writes.
    (Fault::FenceLost, &["a_maximum_age_set_later_lets_no_older_token_in"]),
    (Fault::FencesMissing, &["fenced_writes_are_there", "an_older_token_is_rejected"]),
    (Fault::FencesAnywhere, &["a_store_that_forgets_has_no_fenced_writes"]),
    (
        Fault::FenceIgnored,
        &["an_older_token_is_rejected", "a_deletion_keeps_the_token", "the_newest_token_wins"],
    ),
    (
        Fault::FenceRejectsEqual,
        &["equal_and_newer_tokens_are_accepted", "writers_with_one_token_all_write"],
    ),
    (Fault::FenceOfStore, &["a_token_counts_for_its_key"]),
    (
        Fault::FencedDeleteForgets,
        &[
            "a_deletion_keeps_the_token",
            "deleting_what_is_absent_leaves_a_token",
            "reads_show_the_token",
        ],
    ),
    (Fault::FencedCreateForgets, &["a_deletion_keeps_the_token"]),
    (Fault::FencedDeleteNeedsValue, &["deleting_what_is_absent_leaves_a_token"]),
    (Fault::FencedSwapsIgnoreVersions, &["fenced_swaps_compare"]),
    (Fault::FenceComparedLast, &["a_lost_lock_is_said_first"]),
    (Fault::FenceStays, &["a_write_without_a_token_takes_it_away"]),
    (Fault::FenceRaces, &["the_newest_token_wins"]),
    (Fault::FencedTriesOnce, &["writers_with_one_token_all_write"]),
    (Fault::FenceHidden, &["reads_show_the_token", "watches_show_the_token"]),
    (Fault::FenceNotWatched, &["watches_show_the_token"]),
    (Fault::RaiseDoesNothing, &["raise_rejects_smaller_tokens", "raise_is_a_write"]),
    (Fault::RaiseEmpties, &["raise_rejects_smaller_tokens", "raise_loses_no_write"]),
    (Fault::RaiseAlwaysWrites, &["raise_writes_nothing_over_a_newer_token"]),
    (Fault::RaiseRaces, &["raise_loses_no_write"]),
    (Fault::RaiseForgetsLife, &["raise_of_a_value_that_expires_is_rejected"]),
    (Fault::SlowClock, &["the_clock_is_that_of_the_entries"]),
    // Stores and settings.
    (Fault::StoreIsFresh, &["a_store_is_made_once"]),
    (Fault::OneStore, &["stores_are_apart"]),
    (Fault::MustExistCreates, &["a_store_that_must_exist_is_not_made"]),
    (Fault::AnyName, &["invalid_names_are_rejected"]),
    (Fault::StoreClaimsMore, &["a_store_claims_no_more_than_its_connection"]),
    (Fault::ListForgets, &["stores_are_listed"]),
    (
        Fault::DeleteStoreDoesNothing,
        &[
            "stores_are_listed",
            "a_deleted_store_is_gone",
            "watching_and_swapping_in_a_deleted_store_fails",
            "a_store_made_again_is_empty",
        ],
    ),
    (Fault::DeleteStoreForgives, &["deleting_a_missing_store_is_rejected"]),
    (Fault::GoneIsEmpty, &["a_deleted_store_is_gone"]),
    (Fault::AnySettings, &["impossible_settings_are_rejected"]),
    (Fault::HistoryIsCut, &["the_claimed_history_is_the_most"]),
    (Fault::ConfigNotCompared, &["a_different_configuration_is_rejected"]),
    (Fault::ComparesDefaults, &["settings_left_alone_are_not_compared"]),
    (Fault::ReconcileDoesNothing, &["reconciling_changes_the_store"]),
    (Fault::LimitsStay, &["limits_can_be_removed"]),
    (Fault::LimitOfOpening, &["open_handles_learn_of_new_limits"]),
    (Fault::HistoryWithTtl, &["a_history_is_not_given_to_times_to_live"]),
    (Fault::NeverFull, &["a_full_store_says_so"]),
    // Deadlines and shutdown.
    (Fault::NeverHealthy, &["a_backend_that_answers_is_healthy"]),
    (Fault::ForgetsDeadline, &["the_deadline_of_a_handle_is_its_own"]),
    (Fault::WritesHang, &["writes_end_by_their_deadline"]),
    (Fault::TimedOutWriteLands, &["a_write_that_timed_out_did_not_happen"]),
    (Fault::Panics, &["put_then_get"]),
    (
        Fault::ShutdownDoesNothing,
        &[
            "shutdown_ends_the_connection",
            "shutdown_ends_its_stores",
            "shutdown_ends_swaps",
            "shutdown_ends_watches",
        ],
    ),
    (Fault::ShutdownOnce, &["shutdown_ends_the_connection"]),
    (
        Fault::ClaimsToLast,
        &[
            "values_survive_the_connection",
            "cursors_survive_the_connection",
            "connections_share_their_stores",
            "connections_end_alone",
        ],
    ),
];

/// Checks that no backend can fail, because the library decides their result before it calls one.
const UNBREAKABLE: [&str; 2] =
    ["invalid_keys_are_rejected_by_reads", "a_prefix_of_no_key_is_invalid"];

/// Timeout of a check, long enough for a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Timeout of a check of a broken store: long enough for values to expire, and short for checks
/// that hang.
const BROKEN_DEADLINE: Duration = Duration::from_secs(12);

async fn run(fault: Fault, names: &[&str]) -> Report {
    let wrapped = move || async move {
        let inner = connect("memory:").await?;
        Ok(broken(inner, fault))
    };
    // Most failing checks fail by hanging, so all of them run at the same time.
    let deadline = match fault {
        Fault::None | Fault::Modest => DEADLINE,
        _ => BROKEN_DEADLINE,
    };
    let suite = Suite::connecting(wrapped).deadline(deadline).concurrency(500);
    names.iter().fold(suite, |suite, name| suite.only(*name)).run().await
}

/// Returns the families of these checks.
fn families(names: &[&str]) -> Vec<&'static str> {
    let families = checks().filter(|check| names.contains(&check.name)).map(|check| check.family);
    families.collect::<BTreeSet<_>>().into_iter().collect()
}

#[tokio::test]
async fn without_a_fault_everything_passes() {
    let report = run(Fault::None, &[]).await;
    assert!(report.is_ok(), "{report}");
    assert!(matches!(report.outcome("put_then_get"), Some(Outcome::Passed)), "{report}");
}

#[tokio::test]
async fn unclaimed_rejected_capability_is_not_applicable() {
    let report = run(Fault::Modest, &[]).await;
    assert!(report.is_ok(), "{report}");
    for name in
        ["no_update_is_lost", "the_state_comes_first", "history_is_bounded", "others_do_not_expire"]
    {
        assert!(
            matches!(report.outcome(name), Some(Outcome::NotApplicable(_))),
            "{name} in\n{report}"
        );
    }
    assert!(matches!(report.outcome("put_then_get"), Some(Outcome::Passed)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_found_and_every_check_finds_one() {
    let runs = FAULTS.iter().map(|(fault, expected)| {
        let run = async { run(*fault, &families(expected)).await };
        (*fault, tokio::spawn(run))
    });
    let mut reports = Vec::new();
    for ((fault, run), (_, expected)) in runs.collect::<Vec<_>>().into_iter().zip(FAULTS) {
        reports.push((fault, *expected, run.await.expect("the suite itself does not panic")));
    }
    let missed = missed(&reports, checks().map(|check| check.name), &UNBREAKABLE);
    assert!(missed.is_empty(), "{missed}");
}

#[tokio::test]
async fn a_check_that_hangs_says_where_it_stood() {
    let connection = broken(connect("memory:").await.unwrap(), Fault::WatchHangs);
    let suite = Suite::new(connection).deadline(Duration::from_secs(2));
    let report = suite.only("an_empty_store_is_caught_up").run().await;
    let Some(Outcome::Failed(failure)) = report.outcome("an_empty_store_is_caught_up") else {
        panic!("expected a failure in\n{report}");
    };
    assert!(failure.message().contains("did not end within 2s"), "{failure}");
    assert!(failure.message().contains("waiting for the caught-up marker"), "{failure}");
    assert_eq!(report.checks().len(), 1, "{report}");
}

#[tokio::test]
async fn a_panic_is_a_failure_of_its_check_alone() {
    let connection = broken(connect("memory:").await.unwrap(), Fault::Panics);
    let report =
        Suite::new(connection).only("put_then_get").only("create_makes_an_absent_key").run().await;
    let text = report.to_string();
    assert!(text.contains("the backend panicked: a bug in the backend"), "{text}");
    assert!(text.ends_with("1 passed, 1 failed"), "{text}");
}

#[tokio::test]
async fn a_name_that_there_is_not_is_a_failure() {
    let suite = Suite::new(connect("memory:").await.unwrap()).only("keys").only("kyes");
    let report = suite.run().await;
    assert_eq!(
        report.failures().map(|check| check.name.as_str()).collect::<Vec<_>>(),
        ["kyes"],
        "{report}"
    );
}

#[tokio::test]
async fn a_connection_that_cannot_be_opened_fails_every_check() {
    let report = Suite::connecting(|| connect("nonsense:")).run().await;
    assert_eq!(report.failures().count(), checks().count(), "{report}");
}
