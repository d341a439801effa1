//! What the leader of a bucket's stream has, and a consumer elsewhere may not.
//!
//! In a cluster the server places a consumer on any replica, also on one that is behind. What waits for such a consumer
//! is what its replica has, so that "all of it has come" tells nothing of what was acknowledged before. The server that
//! answers a look at the stream is the leader, which has everything: a consumer made there afterwards is not behind that
//! look. Of one that was made elsewhere it is known only by asking the leader whether there is anything newer. It is
//! asked where the state seems to be complete, and not before: mostly once.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::store::StoreCore;
use super::wire::Place;
use crate::store::{Deadline, KvResult};

/// Maximum number of requests in flight.
pub(super) const IN_FLIGHT: usize = 64;

/// How far behind a consumer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lag {
    /// It began with all that was there.
    None,
    /// It may be behind.
    Unknown,
    /// The leader had a message here that had not come.
    Until(u64),
}

impl Lag {
    /// Of a consumer made after a look at the stream, by the servers that answered.
    pub(super) fn of(consumer: Option<&str>, leader: Option<&str>) -> Self {
        // Without a cluster, a consumer is nowhere else.
        if consumer.is_none_or(|server| Some(server) == leader) {
            Self::None
        } else {
            Self::Unknown
        }
    }

    /// Whether the state may be complete with this message, so that it is worth asking. `floor` is the end of the stream
    /// at the look, `waiting` what waited for the consumer.
    pub(super) fn may_end_with(self, place: &Place, waiting: u64, floor: u64) -> bool {
        match self {
            Self::None => place.stream_sequence >= floor,
            Self::Unknown => place.stream_sequence >= floor || place.consumer_sequence >= waiting,
            Self::Until(end) => place.stream_sequence >= end,
        }
    }
}

/// The sequence of the newest message under any of the filters, from the leader; 0 where there is none.
pub(super) async fn newest(
    core: &StoreCore,
    operation: &'static str,
    filters: &[String],
    deadline: Deadline,
) -> KvResult<u64> {
    // The subject of this question may have wildcards.
    let queries: Vec<_> = filters.iter().map(|filter| json!({ "last_by_subj": filter })).collect();
    stream::iter(queries)
        .map(|query| async move {
            let found = core.leader_answer(operation, &query, deadline).await?;
            Ok(found.map_or(0, |message| message.sequence()))
        })
        .buffer_unordered(IN_FLIGHT)
        .try_fold(0, |newest, sequence| async move { Ok(newest.max(sequence)) })
        .await
}

/// Returns the subjects under the filters that have a message, from the leader.
///
/// The server answers in pages of 100,000 in the order of the names, and each page is of its own
/// moment. A subject that has messages throughout is in one of them.
pub(super) async fn subjects(
    core: &StoreCore,
    operation: &'static str,
    filters: &[String],
    deadline: Deadline,
) -> KvResult<Vec<String>> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        total: usize,
        state: Page,
    }
    #[derive(Deserialize)]
    struct Page {
        subjects: Option<BTreeMap<String, IgnoredAny>>,
    }
    let info = format!("STREAM.INFO.{}", core.bucket.stream);
    let mut all = Vec::new();
    for filter in filters {
        let mut names = BTreeMap::new();
        loop {
            // Pages overlap by one name. If they do not, earlier names were removed meanwhile, and
            // others moved from the next page into one that was read before.
            let offset = names.len().saturating_sub(1);
            let query = json!({ "subjects_filter": filter, "offset": offset });
            let answer = core.link.api::<Info>(operation, &info, &query, deadline).await?;
            let answer = answer.map_err(|error| error.into_error(operation, &core.bucket.name))?;
            let mut page = answer.state.subjects.unwrap_or_default();
            let is_last = offset + page.len() >= answer.total || page.is_empty();
            let has_gap = match (names.last_key_value(), page.first_key_value()) {
                (Some((last, _)), Some((first, _))) => first > last,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if has_gap {
                names.clear();
                continue;
            }
            names.append(&mut page);
            if is_last {
                break;
            }
        }
        all.extend(names.into_keys());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_level_only_where_the_leader_was_looked_at() {
        assert_eq!(Lag::of(Some("a"), Some("a")), Lag::None);
        assert_eq!(Lag::of(Some("b"), Some("a")), Lag::Unknown);
        assert_eq!(Lag::of(Some("b"), None), Lag::Unknown);
        // A server without a cluster names itself for streams only.
        assert_eq!(Lag::of(None, Some("a")), Lag::None);
        assert_eq!(Lag::of(None, None), Lag::None);
    }

    #[test]
    fn when_to_ask() {
        let place = |consumer_sequence, stream_sequence| Place {
            stream_sequence,
            consumer_sequence,
            nanos: 0,
            pending: 0,
        };
        // Three were waiting, the floor is at 10.
        assert!(!Lag::None.may_end_with(&place(3, 9), 3, 10));
        assert!(Lag::None.may_end_with(&place(1, 10), 3, 10));
        // The floor can be out of scope, and what was waiting can be less than there is.
        assert!(!Lag::Unknown.may_end_with(&place(2, 9), 3, 10));
        assert!(Lag::Unknown.may_end_with(&place(3, 9), 3, 10));
        assert!(Lag::Unknown.may_end_with(&place(1, 10), 3, 10));
        assert!(!Lag::Until(12).may_end_with(&place(5, 11), 3, 10));
        assert!(Lag::Until(12).may_end_with(&place(5, 12), 3, 10));
    }
}
