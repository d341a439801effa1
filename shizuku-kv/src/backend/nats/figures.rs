//! Figures of a bucket: how many of its keys have an entry, from the leader.
//!
//! For the whole bucket one request for the stream's information returns them, all of one moment.
//! For a prefix the server counts the subjects under a filter. The position is requested
//! afterwards, so that no counted entry is newer.

use serde::Deserialize;
use serde_json::json;

use super::api::ApiError;
use super::core::StoreCore;
use super::filters::{Counting, filters};
use super::leader;
use super::stream_info::StreamInfo;
use super::wire::subject_prefix;
use crate::store::{Deadline, KvError, KvResult, StoreFigures, WatchScope};

const OPERATION: &str = "figures";

/// Number of subjects to skip in a listing that needs only the total: more than any stream has.
const BEYOND: u32 = 2_000_000_000;
/// Maximum number of counts. A count is repeated if a write came between it and its position. In a
/// scope that is written all the time, the last count is used. It may be lower than the position
/// implies, and a follower then reads the store again.
const COUNTS: usize = 4;

pub(super) async fn figures(
    core: &StoreCore,
    scope: &WatchScope,
    deadline: Deadline,
) -> KvResult<StoreFigures> {
    let Some(filter) = exact_filter(core, scope) else {
        let reason = "the server cannot count the keys of this scope".to_owned();
        return Err(KvError::Unsupported { operation: OPERATION, reason });
    };
    let figures_of = |info: &StreamInfo, newest| StoreFigures {
        reverts: info.reverts(),
        end: info.last_sequence(),
        entries: Some(info.messages()),
        ..StoreFigures::counted(info.incarnation(&core.bucket.stream), newest, info.subjects())
    };
    if filter == whole(core) {
        let info = core.info(OPERATION, deadline).await?;
        return Ok(StoreFigures {
            newest_at: Some(info.last_time()),
            ..figures_of(&info, info.last_sequence())
        });
    }
    let filters = [filter];
    let (mut info, mut keys) = counted(core, &filters[0], deadline).await?;
    let mut newest = leader::newest(core, OPERATION, &filters, deadline).await?;
    for _ in 1..COUNTS {
        if newest <= info.last_sequence() {
            break;
        }
        // The count may lack the key of a write between the two answers.
        (info, keys) = counted(core, &filters[0], deadline).await?;
        newest = leader::newest(core, OPERATION, &filters, deadline).await?;
    }
    Ok(StoreFigures { keys: Some(keys), ..figures_of(&info, newest) })
}

/// Returns the stream's information, and of the same moment the number of keys that have an entry
/// in a scope. The number is `None` if the server cannot count them.
pub(super) async fn scope_keys(
    core: &StoreCore,
    operation: &'static str,
    scope: &WatchScope,
    deadline: Deadline,
) -> KvResult<(StreamInfo, Option<u64>)> {
    match exact_filter(core, scope) {
        Some(filter) if filter != whole(core) => {
            let (info, keys) = counted(core, &filter, deadline).await?;
            Ok((info, Some(keys)))
        }
        filter => {
            let info = core.info(operation, deadline).await?;
            let keys = filter.map(|_| info.subjects());
            Ok((info, keys))
        }
    }
}

/// The filter that matches the keys of a scope and no others, if the server has one.
pub(super) fn exact_filter(core: &StoreCore, scope: &WatchScope) -> Option<String> {
    let mut filters = filters(&core.bucket.name, scope, Counting::Right);
    let filter = filters.pop().filter(|_| filters.is_empty())?;
    is_exact(scope, filter == whole(core)).then_some(filter)
}

/// The filter of the whole bucket.
fn whole(core: &StoreCore) -> String {
    format!("{}>", subject_prefix(&core.bucket.name))
}

/// Whether the filter of a scope, which may be the whole bucket, matches nothing but the scope.
fn is_exact(scope: &WatchScope, is_whole: bool) -> bool {
    match scope {
        WatchScope::Prefix(prefix) => prefix.is_empty() || (prefix.ends_with('.') && !is_whole),
        WatchScope::All | WatchScope::Key(_) => true,
        _ => false,
    }
}

/// Number of subjects that the leader has under a filter.
async fn counted(
    core: &StoreCore,
    filter: &str,
    deadline: Deadline,
) -> KvResult<(StreamInfo, u64)> {
    #[derive(Deserialize)]
    struct Counted {
        #[serde(flatten)]
        info: StreamInfo,
        #[serde(default)]
        total: u64,
    }
    let subject = format!("STREAM.INFO.{}", core.bucket.stream);
    let query = json!({ "subjects_filter": filter, "offset": BEYOND });
    let answer = core.link.api(OPERATION, &subject, &query, deadline).await?;
    let Counted { info, total } =
        answer.map_err(|error: ApiError| error.into_error(OPERATION, &core.bucket.name))?;
    core.learn(&info);
    Ok((info, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scopes_that_the_server_can_match_are_exact() {
        assert!(is_exact(&WatchScope::All, true));
        assert!(is_exact(&WatchScope::prefix(""), true));
        assert!(is_exact(&WatchScope::prefix("a.b."), false));
        assert!(!is_exact(&WatchScope::prefix("a.b"), false));
        assert!(!is_exact(&WatchScope::prefix("*."), true));
        assert!(!is_exact(&WatchScope::prefixes(["a."]), false));
    }
}
