//! Refusals: what the server says beside its answers, and the right that is missing.
//!
//! A request that the server does not allow gets no answer, and neither does one whose answers
//! cannot arrive. The server says so in an error of the connection, which names the subject
//! (ADR 0066).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::space::ApiSpace;
use crate::store::KvError;

/// Number of characters in the random token of an inbox.
const INBOX_TOKEN: usize = 22;

/// How the names of our consumers begin.
const CONSUMER_NAME: &str = "shizuku-";

/// Something that the server does not let this connection do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Publish {
        /// The subject that the server has compared with the rights of the user.
        checked: String,
        /// The subject of the request. The server of a JetStream domain maps it to another before
        /// it compares.
        sent: String,
    },
    Subscribe(String),
}

impl Refusal {
    /// Reads an error of the server; `None` if it is about something else.
    pub(super) fn parse(text: &str, space: &ApiSpace) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let (_, about) = lower.split_once("permissions violation for ")?;
        let subject = text.split('"').nth(1)?.to_owned();
        if about.starts_with("subscription") {
            Some(Self::Subscribe(subject))
        } else {
            Some(Self::Publish { sent: space.sent(&subject), checked: subject })
        }
    }

    /// Whether it concerns one of these subjects.
    pub(super) fn names(&self, subjects: &[&str]) -> bool {
        let (Self::Publish { sent: subject, .. } | Self::Subscribe(subject)) = self;
        subjects.contains(&subject.as_str())
    }

    /// The error of an operation that needs what is refused.
    pub(super) fn error(&self, operation: &'static str) -> KvError {
        let reason = match self {
            Self::Publish { checked, .. } => format!(
                "this user may not publish to {:?}; allow it in the server's permissions (SECURITY.md lists them)",
                right(checked)
            ),
            Self::Subscribe(subject) => format!(
                "this user may not subscribe to {:?}, so that no answer can arrive; allow it in the server's \
                 permissions, or set inbox_prefix to what the user may subscribe to",
                right(subject)
            ),
        };
        KvError::Unauthorized { operation, reason }
    }
}

/// The right that covers a subject: random names become wildcards.
fn right(subject: &str) -> String {
    let is_inbox = |token: &str| {
        token.len() == INBOX_TOKEN && token.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let is_inbox_of_ours = !subject.starts_with('$');
    let mut names_consumer = subject.contains(".CONSUMER.");
    let mut tokens = Vec::new();
    for token in subject.split('.') {
        if is_inbox_of_ours && is_inbox(token) {
            tokens.push(">");
            break;
        }
        if names_consumer && token.starts_with(CONSUMER_NAME) {
            names_consumer = false;
            tokens.push("*");
        } else {
            tokens.push(token);
        }
    }
    tokens.join(".")
}

/// Checks a prefix of inboxes.
///
/// # Errors
/// Returns what is wrong with it, and the way out.
pub(super) fn check_inbox_prefix(prefix: &str) -> Result<(), &'static str> {
    if prefix.is_empty() {
        return Err("it is empty; write a subject such as _INBOX_app");
    }
    if prefix.ends_with(".>") || prefix.ends_with(".*") || prefix.ends_with('.') {
        return Err(
            "it ends in a dot or a wildcard; write _INBOX_app for the right to subscribe to _INBOX_app.>",
        );
    }
    if prefix.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>')) {
        return Err("it has white space or a wildcard; write a subject such as _INBOX_app");
    }
    if prefix.split('.').any(str::is_empty) {
        return Err("it has an empty token; write tokens joined by single dots");
    }
    if prefix.starts_with('$') || matches!(prefix.split('.').next(), Some("_R_" | "_GR_")) {
        return Err(
            "subjects that begin with $, _R_ or _GR_ are the server's; write one such as _INBOX_app",
        );
    }
    Ok(())
}

/// A way to do something, in place of which there is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Way {
    /// A consumer whose filter is in the subject of the request.
    FilterInSubject,
    /// A message from the leader.
    LeaderMessage,
    /// Many keys in one request.
    Batch,
}

/// The ways that the server does not allow for a stream, each with the epoch of the connection in
/// which it was tried.
///
/// Rights may change with a new epoch, and also within one: a server that reads its configuration
/// again keeps its connections. So after a denial of the other way the closed one is tried again.
#[derive(Debug, Default)]
pub(super) struct Detours(Mutex<HashMap<(Way, String), u64>>);

impl Detours {
    pub(super) fn is_closed(&self, way: Way, stream: &str, epoch: u64) -> bool {
        let ways = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Small, and rarely anything in it.
        ways.iter().any(|((closed, of), since)| *closed == way && of == stream && *since == epoch)
    }

    pub(super) fn close(&self, way: Way, stream: &str, epoch: u64) {
        let mut ways = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ways.retain(|_, since| *since == epoch);
        ways.insert((way, stream.to_owned()), epoch);
    }

    pub(super) fn open(&self, way: Way, stream: &str) {
        let mut ways = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ways.retain(|(closed, of), _| *closed != way || of != stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_server_are_read() {
        let parse = |text: &str| Refusal::parse(text, &ApiSpace::default());
        let subject = || "$KV.b.key".to_owned();
        assert_eq!(
            parse("Permissions Violation for Publish to \"$KV.b.key\""),
            Some(Refusal::Publish { checked: subject(), sent: subject() })
        );
        let inbox = "_INBOX.abcdefghijABCDEFGHIJ12.*";
        for text in ["", " (sid \"3\")", " using queue \"q\"", ", too many tokens"] {
            assert_eq!(
                parse(&format!("Permissions Violation for Subscription to {inbox:?}{text}")),
                Some(Refusal::Subscribe(inbox.to_owned()))
            );
        }
        assert_eq!(parse("Permissions Violation for Publish"), None);
        assert_eq!(parse("maximum subscriptions exceeded"), None);
    }

    #[test]
    fn errors_name_the_right() {
        assert_eq!(right("_INBOX.abcdefghijABCDEFGHIJ12.*"), "_INBOX.>");
        assert_eq!(right("_INBOX_app.x.abcdefghijABCDEFGHIJ12"), "_INBOX_app.x.>");
        assert_eq!(right("$KV.b.abcdefghijABCDEFGHIJ12"), "$KV.b.abcdefghijABCDEFGHIJ12");
        assert_eq!(
            right("$JS.API.CONSUMER.CREATE.KV_b.shizuku-1-0.$KV.b.part.>"),
            "$JS.API.CONSUMER.CREATE.KV_b.*.$KV.b.part.>"
        );
        assert_eq!(right("$JS.API.DIRECT.GET.KV_b.$KV.b.key"), "$JS.API.DIRECT.GET.KV_b.$KV.b.key");
    }

    #[test]
    fn prefixes_of_inboxes() {
        for good in ["_INBOX", "_INBOX_app", "app.inbox", "a"] {
            assert_eq!(check_inbox_prefix(good), Ok(()), "{good}");
        }
        for bad in [
            "", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "*", ">", "a*", "$KV.b", "$JS",
            "_R_", "_GR_.a", "a\n",
        ] {
            assert!(check_inbox_prefix(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_detour_lasts_until_its_way_is_opened_or_a_reconnect() {
        let detours = Detours::default();
        assert!(!detours.is_closed(Way::Batch, "KV_b", 0));
        detours.close(Way::Batch, "KV_b", 0);
        assert!(detours.is_closed(Way::Batch, "KV_b", 0));
        assert!(!detours.is_closed(Way::LeaderMessage, "KV_b", 0));
        assert!(!detours.is_closed(Way::Batch, "KV_c", 0));
        assert!(!detours.is_closed(Way::Batch, "KV_b", 1));
        detours.open(Way::LeaderMessage, "KV_b");
        assert!(detours.is_closed(Way::Batch, "KV_b", 0));
        detours.open(Way::Batch, "KV_b");
        assert!(!detours.is_closed(Way::Batch, "KV_b", 0));
        detours.close(Way::Batch, "KV_b", 0);
        detours.close(Way::Batch, "KV_c", 1);
        assert_eq!(detours.0.lock().map_or(0, |ways| ways.len()), 1);
    }
}
