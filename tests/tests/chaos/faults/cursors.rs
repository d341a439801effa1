//! Resumes from stored cursors.

use std::time::Duration;

use shizuku_kv::{KvError, Store, WatchCursor};
use shizuku_kv_tests::Random;

use crate::faults::check::{self, Bucket, Violation};
use crate::faults::history::History;
use crate::faults::log::{Content, Event, Form, Log, Sight};
use crate::faults::watchers::event;

/// Timeout for a watch to catch up without faults.
const LIMIT: Duration = Duration::from_secs(30);

/// The outcomes of resumed cursors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resumed {
    pub(crate) continued: u64,
    pub(crate) expired: u64,
}

/// Resumes some of the cursors of each watch, chosen at random. `translate` converts a content to
/// that of the history.
#[allow(clippy::too_many_arguments, reason = "everything that the checks compare")]
pub(crate) async fn resume(
    store: &Store,
    logs: &[Log],
    history: &History,
    bucket: &Bucket,
    first_sequence: u64,
    each: usize,
    random: &mut Random,
    translate: impl Fn(Content) -> Content,
) -> (Resumed, Vec<Violation>) {
    let mut resumed = Resumed::default();
    let mut found = Vec::new();
    for log in logs.iter().filter(|log| log.form == Form::Watch) {
        for (events, cursor) in random.choose(log.cursors.clone(), each) {
            let cursor = WatchCursor::from_bytes(&cursor.to_bytes()).expect("it was written here");
            let mut later = log.resumed_after(events);
            match tokio::time::timeout(LIMIT, catch_up(store, &mut later, cursor, &translate)).await
            {
                Ok(Ok(())) => {
                    resumed.continued += 1;
                    found.extend(check::order(&later));
                    found.extend(check::settled(history, bucket, &later));
                }
                Ok(Err(KvError::CursorExpired { .. }))
                    if cursor.position() + 1 < first_sequence =>
                {
                    resumed.expired += 1;
                }
                Ok(Err(error)) => found.push(Violation::of(
                    &later,
                    format!(
                        "it ended though the stream begins at {first_sequence}: {error}; {cursor:?}"
                    ),
                )),
                Err(_) => found.push(Violation::of(
                    &later,
                    format!("it has not caught up within {LIMIT:?}; {cursor:?}"),
                )),
            }
        }
    }
    (resumed, found)
}

async fn catch_up(
    store: &Store,
    log: &mut Log,
    cursor: WatchCursor,
    translate: impl Fn(Content) -> Content,
) -> Result<(), KvError> {
    let watch = store.watch_from(log.scope.clone(), cursor).await?;
    while !log.is_caught_up {
        let update = watch.next().await.expect("an update or an error")?;
        let event = match event(update).expect("values of this run") {
            Event::Sight(sight) => {
                Event::Sight(Sight { content: translate(sight.content), ..sight })
            }
            event => event,
        };
        log.push(Duration::ZERO, event);
    }
    Ok(())
}
