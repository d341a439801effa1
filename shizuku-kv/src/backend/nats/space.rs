//! The JetStream of a connection, and the subjects under which it answers.
//!
//! A server with a JetStream of its own answers under `$JS.API`, also if it is a leaf node. The
//! JetStream of another domain answers under `$JS.DOMAIN.API`. The servers of a domain map the rest
//! of such a subject to their own subjects, `$KV` included. Messages are stored and delivered under
//! the mapped subject, and the server to which a client is connected compares the mapped subject
//! with the rights of the user. A leaf node outside of the domain compares the subject as it is.

use super::config::NatsConnectionConfig;
use crate::store::{KvError, KvResult};

const DEFAULT_PREFIX: &str = "$JS.API";

/// Beginning of the subjects of all buckets.
const BUCKETS: &str = "$KV.";

/// Maximum size in bytes of the headers that servers on the way add: one header about the client to
/// a request, and four to the answer of a read, which contains a subject of up to 1,100 bytes.
const OVERHEAD: usize = 4 * 1024;

/// The subjects of one JetStream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiSpace {
    prefix: String,
    /// The domain, if the prefix was derived from it.
    domain: Option<String>,
}

impl Default for ApiSpace {
    /// The server's own JetStream.
    fn default() -> Self {
        Self { prefix: DEFAULT_PREFIX.to_owned(), domain: None }
    }
}

impl ApiSpace {
    /// Returns the JetStream that a configuration names.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidConfig`] if a name cannot be a part of a subject, or if both a
    /// domain and a prefix are set.
    pub(super) fn of(config: &NatsConnectionConfig) -> KvResult<Self> {
        let invalid =
            |field, reason: &str| Err(KvError::InvalidConfig { field, reason: reason.to_owned() });
        match (&config.domain, &config.api_prefix) {
            (None, None) => Ok(Self::default()),
            (Some(_), Some(_)) => invalid("domain", "set the domain or the API prefix, not both"),
            (Some(domain), None) if is_token(domain) => {
                Ok(Self { prefix: format!("$JS.{domain}.API"), domain: Some(domain.clone()) })
            }
            (Some(_), None) => invalid(
                "domain",
                "a JetStream domain is one token, without dots, wildcards and white space, as in the server's \
                 `jetstream { domain: NAME }`",
            ),
            (None, Some(prefix)) if prefix.split('.').all(is_token) => {
                Ok(Self { prefix: prefix.clone(), domain: None })
            }
            (None, Some(_)) => invalid(
                "api_prefix",
                "an API prefix is tokens joined by dots, without wildcards, white space and a dot at its end, such as \
                 JS.hub.API",
            ),
        }
    }

    /// The subject of a request to the JetStream API.
    pub(super) fn api(&self, request: &str) -> String {
        format!("{}.{request}", self.prefix)
    }

    /// The subject to which a message for `subject` is sent.
    pub(super) fn write(&self, subject: String) -> String {
        if self.prefix == DEFAULT_PREFIX { subject } else { self.api(&subject) }
    }

    /// Returns the subject of a message that this connection sent, by the subject that the server
    /// names: the same one, or the one to which a server of the domain has mapped it.
    pub(super) fn sent(&self, named: &str) -> String {
        let below = |prefix: &str| named.strip_prefix(prefix)?.strip_prefix('.');
        match (below(&self.prefix), below(DEFAULT_PREFIX)) {
            (None, Some(request)) => self.api(request),
            (None, None) if named.starts_with(BUCKETS) => self.write(named.to_owned()),
            _ => named.to_owned(),
        }
    }

    /// Returns the size in bytes of the headers that servers on the way add to a message. If a
    /// message exceeds `max_payload`, a leaf node and its hub close the connection between them
    /// ("Maximum Payload Violation" in the log of 2.15.1). This cuts off all clients of the leaf
    /// node.
    pub(super) fn overhead(&self) -> usize {
        if self.prefix == DEFAULT_PREFIX { 0 } else { OVERHEAD }
    }

    /// The likely reason if a write is not acknowledged, and the way out; `None` for the server's
    /// own JetStream. The import of the API does not cover the subjects of a bucket.
    pub(super) fn no_acknowledgement(&self, store: &str) -> Option<String> {
        (self.prefix != DEFAULT_PREFIX && self.domain.is_none()).then(|| {
            let prefix = &self.prefix;
            format!(
                "no acknowledgement came through the API prefix {prefix:?}; if that is the JetStream of another account, import \
                 \"$KV.{store}.>\" as \"{prefix}.$KV.{store}.>\" besides the API"
            )
        })
    }

    /// Returns the reason of an error if no JetStream answers, and the way out.
    pub(super) fn no_answer(&self) -> String {
        match &self.domain {
            Some(domain) => format!(
                "no JetStream of the domain {domain:?} answers: check the name, which is `domain` in the `jetstream {{}}` \
                 block of its servers, and whether the leaf node is connected to them"
            ),
            None if self.prefix == DEFAULT_PREFIX => {
                "JetStream is not enabled, or does not answer: start the server with `-js` or a `jetstream {}` block, and \
                 enable it for the account; if the server is a leaf node, name the JetStream domain of its hub with \
                 ?domain=NAME or NatsConnectionConfig::domain()"
                    .to_owned()
            }
            None => format!(
                "no JetStream answers under the API prefix {:?}: check the prefix, and the account's import of that subject",
                self.prefix
            ),
        }
    }
}

/// Whether a text is one token of a subject.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && !text
            .contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn config() -> NatsConnectionConfig {
        NatsConnectionConfig::new(["nats://one"])
    }

    #[test]
    fn domain_and_prefix_precede_requests_and_writes() {
        let space = ApiSpace::of(&config()).unwrap();
        assert_eq!(space.api("INFO"), "$JS.API.INFO");
        assert_eq!(space.write("$KV.b.k".to_owned()), "$KV.b.k");
        for config in [config().domain("hub"), config().api_prefix("$JS.hub.API")] {
            let space = ApiSpace::of(&config).unwrap();
            assert_eq!(space.api("INFO"), "$JS.hub.API.INFO");
            assert_eq!(space.write("$KV.b.k".to_owned()), "$JS.hub.API.$KV.b.k");
        }
    }

    #[test]
    fn subject_named_by_a_server_is_the_sent_or_mapped_one() {
        let own = ApiSpace::default();
        for subject in ["$JS.API.INFO", "$KV.b.k", "$JS.hub.API.INFO", "_INBOX.x"] {
            assert_eq!(own.sent(subject), subject);
        }
        let hub = ApiSpace::of(&config().domain("hub")).unwrap();
        for sent in
            ["$JS.hub.API.INFO", "$JS.hub.API.$KV.b.k", "$JS.hub.API.DIRECT.GET.KV_b.$KV.b.k"]
        {
            assert_eq!(hub.sent(sent), sent);
        }
        assert_eq!(hub.sent("$JS.API.INFO"), "$JS.hub.API.INFO");
        assert_eq!(hub.sent("$KV.b.k"), "$JS.hub.API.$KV.b.k");
        assert_eq!(
            hub.sent("$JS.API.DIRECT.GET.KV_b.$KV.b.k"),
            "$JS.hub.API.DIRECT.GET.KV_b.$KV.b.k"
        );
        assert_eq!(hub.sent("$JS.APIS"), "$JS.APIS");
        assert_eq!(hub.sent("_INBOX.x"), "_INBOX.x");
        let below = ApiSpace::of(&config().api_prefix("$JS.API.hub")).unwrap();
        assert_eq!(below.sent("$JS.API.hub.INFO"), "$JS.API.hub.INFO");
    }

    #[test]
    fn name_that_is_not_a_subject_is_rejected() {
        for config in [
            config().domain(""),
            config().domain("a.b"),
            config().domain("*"),
            config().domain("a b"),
            config().api_prefix(""),
            config().api_prefix("$JS.API."),
            config().api_prefix("$JS.>"),
            config().domain("hub").api_prefix("$JS.hub.API"),
        ] {
            let error = ApiSpace::of(&config).unwrap_err();
            assert!(matches!(error, KvError::InvalidConfig { .. }), "{error:?}");
        }
    }
}
