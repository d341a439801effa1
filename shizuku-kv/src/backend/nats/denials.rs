//! Denials: errors of the server about requests and subscriptions for which the user has no right.
//!
//! A request that the server does not allow gets no answer, and neither does a request whose
//! answers cannot arrive. The server reports the denial in an error of the connection, which names
//! the subject (ADR 0066).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::space::ApiSpace;
use crate::store::KvError;

/// Number of characters in the random token of an inbox.
const INBOX_TOKEN: usize = 22;

/// Beginning of the names of our consumers.
const CONSUMER_NAME: &str = "shizuku-";

/// A publication or a subscription that the server does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    Publish {
        /// The subject that the server has compared with the rights of the user.
        checked: String,
        /// The subject of the request. The server of a JetStream domain maps this subject to
        /// another one before the comparison.
        sent: String,
    },
    Subscribe(String),
}

impl Denial {
    /// Reads an error of the server. Returns `None` if it is not a denial.
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

    fn subject(&self) -> &str {
        let (Self::Publish { sent: subject, .. } | Self::Subscribe(subject)) = self;
        subject
    }

    /// Returns whether it concerns one of these subjects.
    pub(super) fn names(&self, subjects: &[&str]) -> bool {
        subjects.contains(&self.subject())
    }

    /// Returns the error of an operation that needs the denied right.
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

/// The last denials that the server has reported, by subject.
///
/// Each denial wakes every waiting request. The time to find a denial must therefore not grow with
/// their number: among 3,000 denied writes, searching a list took 2 to 4 s.
#[derive(Debug, Default)]
pub(super) struct Denials {
    /// Number of denials so far.
    count: u64,
    /// The last denial of each subject, with its number.
    last: HashMap<Arc<str>, (u64, Arc<Denial>)>,
    /// Numbers and subjects of the stored denials, the oldest first.
    order: VecDeque<(u64, Arc<str>)>,
}

impl Denials {
    /// Maximum number of stored denials. If more requests are denied at the same time, some of them
    /// do not find their denial.
    const LIMIT: usize = 4096;

    /// Returns the number of denials so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn add(&mut self, denial: Arc<Denial>) {
        self.count += 1;
        let subject: Arc<str> = denial.subject().into();
        self.last.insert(Arc::clone(&subject), (self.count, denial));
        self.order.push_back((self.count, subject));
        if self.order.len() > Self::LIMIT
            && let Some((number, subject)) = self.order.pop_front()
            && self.last.get(&subject).is_some_and(|(last, _)| *last == number)
        {
            self.last.remove(&subject);
        }
    }

    /// Returns a denial of one of these subjects, if there was one after the first `count`.
    pub(super) fn after(&self, count: u64, subjects: &[&str]) -> Option<Arc<Denial>> {
        if self.count == count {
            return None;
        }
        let new = |subject: &&str| self.last.get(*subject).filter(|(number, _)| *number > count);
        subjects.iter().find_map(new).map(|(_, denial)| Arc::clone(denial))
    }
}

/// Returns the right that covers a subject: random names become wildcards.
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
/// Returns the broken rule, and a valid form.
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

/// A form of request that can be replaced by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// A consumer whose filter is in the subject of the request.
    FilterInSubject,
    /// A message from the leader.
    LeaderMessage,
    /// Many keys in one request.
    Batch,
}

/// The forms that the server has denied for a stream, each with the epoch of the connection of that
/// attempt.
///
/// Rights may change between epochs, and within one, because a server that reloads its
/// configuration keeps its connections. So after a denial of the other form, the form that was
/// denied first is tried again.
#[derive(Debug, Default)]
pub(super) struct DeniedForms(Mutex<HashMap<(Form, String), u64>>);

impl DeniedForms {
    pub(super) fn is_denied(&self, form: Form, stream: &str, epoch: u64) -> bool {
        let forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The map is small, and almost always empty, so it is searched without a copy of the name.
        forms.iter().any(|((denied, of), since)| *denied == form && of == stream && *since == epoch)
    }

    pub(super) fn deny(&self, form: Form, stream: &str, epoch: u64) {
        let mut forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forms.retain(|_, since| *since == epoch);
        forms.insert((form, stream.to_owned()), epoch);
    }

    pub(super) fn allow(&self, form: Form, stream: &str) {
        let mut forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forms.retain(|(denied, of), _| *denied != form || of != stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_server_are_read() {
        let parse = |text: &str| Denial::parse(text, &ApiSpace::default());
        let subject = || "$KV.b.key".to_owned();
        assert_eq!(
            parse("Permissions Violation for Publish to \"$KV.b.key\""),
            Some(Denial::Publish { checked: subject(), sent: subject() })
        );
        let inbox = "_INBOX.abcdefghijABCDEFGHIJ12.*";
        for text in ["", " (sid \"3\")", " using queue \"q\"", ", too many tokens"] {
            assert_eq!(
                parse(&format!("Permissions Violation for Subscription to {inbox:?}{text}")),
                Some(Denial::Subscribe(inbox.to_owned()))
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
    fn denied_form_stays_until_it_is_allowed_or_a_reconnect() {
        let forms = DeniedForms::default();
        assert!(!forms.is_denied(Form::Batch, "KV_b", 0));
        forms.deny(Form::Batch, "KV_b", 0);
        assert!(forms.is_denied(Form::Batch, "KV_b", 0));
        assert!(!forms.is_denied(Form::LeaderMessage, "KV_b", 0));
        assert!(!forms.is_denied(Form::Batch, "KV_c", 0));
        assert!(!forms.is_denied(Form::Batch, "KV_b", 1));
        forms.allow(Form::LeaderMessage, "KV_b");
        assert!(forms.is_denied(Form::Batch, "KV_b", 0));
        forms.allow(Form::Batch, "KV_b");
        assert!(!forms.is_denied(Form::Batch, "KV_b", 0));
        forms.deny(Form::Batch, "KV_b", 0);
        forms.deny(Form::Batch, "KV_c", 1);
        assert_eq!(forms.0.lock().map_or(0, |forms| forms.len()), 1);
    }

    #[test]
    fn denial_is_found_by_subject_after_a_mark() {
        let subscribe = |subject: String| Arc::new(Denial::Subscribe(subject));
        let mut denials = Denials::default();
        denials.add(subscribe("a".to_owned()));
        let mark = denials.count();
        assert_eq!(denials.after(mark, &["a", "b"]), None);
        denials.add(subscribe("b".to_owned()));
        assert_eq!(denials.after(mark, &["a", "b"]), Some(subscribe("b".to_owned())));
        assert_eq!(denials.after(0, &["a"]), Some(subscribe("a".to_owned())));
        denials.add(subscribe("a".to_owned()));
        for number in 3..Denials::LIMIT + 2 {
            denials.add(subscribe(format!("s{number}")));
        }
        // The first denial of `a` was evicted, and the second one is the oldest.
        assert_eq!((denials.order.len(), denials.last.len()), (Denials::LIMIT, Denials::LIMIT));
        assert_eq!(denials.after(0, &["b"]), None);
        assert_eq!(denials.after(mark, &["a"]), Some(subscribe("a".to_owned())));
    }
}
