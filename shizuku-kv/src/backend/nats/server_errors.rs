//! The texts of the errors that a server sends beside its answers, and of failed attempts to
//! connect.

use std::sync::Arc;

use crate::store::{KvError, KvLimit};

/// Text of the server's error if a connection has reached its limit of subscriptions.
pub(super) const TOO_MANY_SUBSCRIPTIONS: &str = "maximum subscriptions exceeded";

/// Text of the server's error before it ends a connection because a protocol line is too long.
pub(super) const LINE_TOO_LONG: &str = "maximum control line exceeded";

/// Text of the server's error before it ends a connection because a message is too large.
pub(super) const MESSAGE_TOO_LARGE: &str = "maximum payload violation";

pub(super) fn too_many_subscriptions(operation: &'static str) -> KvError {
    KvError::LimitReached {
        operation,
        limit: KvLimit::Subscriptions,
        reason: format!(
            "the server answered {TOO_MANY_SUBSCRIPTIONS:?}; drop other watches and listings, or \
             raise max_subscriptions of the server or the account"
        ),
    }
}

/// Reason why a connection was lost, or why an attempt to connect failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConnectionFailure {
    pub(super) reason: Arc<str>,
    /// The server rejected the credentials, or a file with credentials could not be used.
    pub(super) is_about_credentials: bool,
}

impl ConnectionFailure {
    /// Returns the failure of a connection that the server has ended with this text.
    pub(super) fn of_server(text: &str) -> Self {
        let is_about_credentials = is_about_credentials(text);
        let mut reason = format!("the server ended the connection ({text})");
        if is_about_credentials {
            reason = format!("{reason}: the credentials are rejected; {RENEW}");
        }
        Self { reason: reason.into(), is_about_credentials }
    }

    /// Returns the failure of an attempt to connect, from the client's error. An error about
    /// credentials is rephrased.
    pub(super) fn of_attempt(error: &str) -> Self {
        let rejection = credentials_error(error);
        let reason = match (error.split_once("failed signing nonce: "), rejection) {
            (Some((_, ours)), _) => ours.to_owned(),
            (None, Some(rejection)) => {
                format!("the server rejects the credentials{}; {RENEW}", details_of(rejection))
            }
            (None, None) => error.to_owned(),
        };
        Self { reason: reason.into(), is_about_credentials: rejection.is_some() }
    }

    pub(super) fn into_error(self, operation: &'static str) -> KvError {
        let reason = self.reason.to_string();
        match self.is_about_credentials {
            true => KvError::Unauthorized { operation, reason },
            false => KvError::Unavailable { operation, reason, source: None },
        }
    }
}

/// The remedy for the rejection of credentials that a server has accepted before.
const RENEW: &str = "renew them, or restore the user on the server";

pub(super) const VIOLATION: &str = "authorization violation";

/// Returns the words about credentials in an error of the server, or of an attempt to connect.
pub(super) fn credentials_error(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    [
        "failed signing nonce",
        "authentication expired",
        "authentication revoked",
        "authentication timeout",
        VIOLATION,
    ]
    .into_iter()
    .find(|words| text.contains(words))
}

/// Returns the words of a rejection in brackets. Returns an empty text if they add nothing to
/// "rejected".
pub(super) fn details_of(rejection: &str) -> String {
    if rejection == VIOLATION { String::new() } else { format!(" ({rejection})") }
}

fn is_about_credentials(text: &str) -> bool {
    credentials_error(text).is_some()
}

/// Returns whether the server closes the connection after this error.
pub(super) fn ends_the_connection(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    is_about_credentials(text)
        || lower.contains("maximum connections")
        || lower.contains("active connections")
}
