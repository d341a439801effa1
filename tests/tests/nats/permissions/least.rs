//! The tables of least permissions: each suffices, and no row is superfluous.

use std::collections::BTreeSet;

use shizuku_kv_tests::NatsServer;

use super::operations::outcomes;
use super::rights::Reach;
use super::tables::{Row, block, covers, inbox_prefix, rights, rows};

/// Checks that every operation works with all rows, and that without a row exactly the operations
/// that it names are denied.
async fn are_least(rows: &[Row], reach: Reach) {
    let operations: BTreeSet<_> =
        rows.iter().flat_map(|row| row.needed_by.iter().cloned()).collect();
    let operations: Vec<_> = operations.into_iter().collect();
    let inbox_prefix = inbox_prefix(rows);
    let outcomes = async |server: &NatsServer| {
        let [admin, app] = reach.configs(server);
        outcomes(server, &admin, &app.inbox_prefix(&inbox_prefix), &operations).await
    };
    let server = reach.start(&rights(rows, str::to_owned));
    for (operation, outcome) in outcomes(&server).await {
        assert_eq!(outcome, Ok(()), "{operation} with every right");
    }
    let mut mistakes = Vec::new();
    for left_out in 0..rows.len() {
        let row = &rows[left_out];
        let others =
            rows.iter().enumerate().filter(|(number, _)| *number != left_out).map(|(_, row)| row);
        let server = reach.start(&rights(others, str::to_owned));
        let outcomes = outcomes(&server).await;
        let refused: BTreeSet<_> =
            outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
        let names: BTreeSet<_> = refused.iter().map(|(name, _)| (*name).clone()).collect();
        let expected: BTreeSet<_> = row.needed_by.iter().cloned().collect();
        if names != expected {
            mistakes.push(format!(
                "without {}: {refused:?} are refused, not {expected:?}",
                row.subject
            ));
        }
        for (operation, outcome) in refused {
            let text = outcome.as_ref().unwrap_err();
            let named = text.split('"').find(|part| covers(&row.subject, part));
            // A request without a waiting caller is denied without an error.
            let is_named =
                named.is_some() && text.contains("this user may not") || operation == "clean up";
            if !is_named {
                mistakes.push(format!("{operation} without {}: {text}", row.subject));
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_to_a_whole_bucket_are_least() {
    are_least(&rows("A whole bucket"), Reach::Own).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_to_a_part_of_a_bucket_are_least() {
    are_least(&rows("A part of a bucket"), Reach::Own).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_to_a_whole_bucket_of_a_domain_are_least() {
    are_least(&rows("A whole bucket"), Reach::Domain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_to_a_part_of_a_bucket_of_a_domain_are_least() {
    are_least(&rows("A part of a bucket"), Reach::Domain).await;
}

/// The block has the rows of the tables, and a server accepts it unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn configuration_to_copy_allows_every_operation() {
    let (block, rows) = (block(), rows("A whole bucket"));
    let quoted: BTreeSet<_> = block.split('"').skip(1).step_by(2).collect();
    assert_eq!(quoted, rows.iter().map(|row| row.subject.as_str()).collect());
    let server = NatsServer::builder().config(&block).start();
    let operations: BTreeSet<_> =
        rows.iter().flat_map(|row| row.needed_by.iter().cloned()).collect();
    let operations: Vec<_> = operations.into_iter().collect();
    let [admin, app] = Reach::Own.configs(&server);
    let app = app.inbox_prefix(inbox_prefix(&rows));
    let outcomes = outcomes(&server, &admin, &app, &operations).await;
    assert!(!outcomes.is_empty());
    for (operation, outcome) in outcomes {
        assert_eq!(outcome, Ok(()), "{operation}");
    }
}
