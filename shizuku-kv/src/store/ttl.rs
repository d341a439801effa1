//! Rules for times to live.

use std::time::Duration;

use super::KvError;

/// Returns the reason why a store has no times to live for single keys, and the remedy. The text is
/// a phrase whose subject is the store.
pub(crate) fn ttl_fault(history: Option<u8>) -> String {
    match history.filter(|versions| *versions > 1) {
        Some(versions) => format!(
            "has history {versions}, with which an older value would come back when the newest expires: times to \
             live need history 1; `StoreConfig::new().key_ttl(true).history(1).reconcile()` drops the older values"
        ),
        None => "has no times to live for single keys: open it with `StoreConfig::new().key_ttl(true)`, and \
                 with `.reconcile()` if it was created without"
            .to_owned(),
    }
}

/// Rejects a time to live that exceeds the store's maximum age.
///
/// # Errors
/// Returns [`KvError::InvalidConfig`] if `ttl` is longer than `max_age`.
pub(crate) fn check_ttl(ttl: Duration, max_age: Option<Duration>) -> Result<(), KvError> {
    match max_age {
        Some(age) if ttl > age => Err(KvError::InvalidConfig {
            field: "time to live",
            reason: format!(
                "{ttl:?} is longer than the store's maximum age, {age:?}; shorten it, or raise max_age"
            ),
        }),
        _ => Ok(()),
    }
}
