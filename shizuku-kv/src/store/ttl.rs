//! Rules for times to live.

use std::time::Duration;

use super::KvError;

/// Returns the reason that a store has no times to live for single keys, and the way out: a phrase
/// whose subject is the store.
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

/// Rejects a time to live that the store's maximum age would cut short.
///
/// # Errors
/// Returns [`KvError::InvalidConfig`] if it would.
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
