//! The configuration of a connection, and the parts of it that may be shown.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::store::{Deadline, KvError};

/// How to connect to NATS.
///
/// `Debug` shows where and how, never a password, token, seed or the content of credentials.
///
/// ```
/// use std::time::Duration;
/// use shizuku_kv::{NatsAuth, NatsConnectionConfig};
///
/// let config = NatsConnectionConfig::new(["nats://one:4222", "nats://two:4222"])
///     .auth(NatsAuth::UserPassword { user: "app".into(), password: "secret".into() })
///     .name("billing")
///     .connect_timeout(Duration::from_secs(2));
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone)]
#[must_use]
#[non_exhaustive]
pub struct NatsConnectionConfig {
    /// The servers, as `nats://HOST:PORT`, `tls://HOST:PORT` or `HOST:PORT`; any of them will do.
    /// No userinfo here: see [`auth`](Self::auth).
    pub servers: Vec<String>,
    /// Set by [`auth`](Self::auth()).
    pub auth: NatsAuth,
    /// Set by [`tls`](Self::tls()).
    pub tls: NatsTls,
    /// Set by [`name`](Self::name()).
    pub name: Option<String>,
    /// Set by [`inbox_prefix`](Self::inbox_prefix()).
    pub inbox_prefix: Option<String>,
    /// Set by [`connect_timeout`](Self::connect_timeout()).
    pub connect_timeout: Duration,
    /// Set by [`deadline`](Self::deadline()).
    pub deadline: Duration,
    /// Set by [`domain`](Self::domain()).
    pub domain: Option<String>,
    /// Set by [`api_prefix`](Self::api_prefix()).
    pub api_prefix: Option<String>,
}

impl NatsConnectionConfig {
    /// Returns a configuration with these servers and default settings.
    pub fn new<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            auth: NatsAuth::None,
            tls: NatsTls::default(),
            name: None,
            inbox_prefix: None,
            connect_timeout: Deadline::DEFAULT,
            deadline: Deadline::DEFAULT,
            domain: None,
            api_prefix: None,
        }
    }

    /// How to authenticate; not at all unless set.
    pub fn auth(mut self, auth: NatsAuth) -> Self {
        self.auth = auth;
        self
    }

    /// TLS settings; a server that asks for TLS gets it also with the default ones.
    pub fn tls(mut self, tls: NatsTls) -> Self {
        self.tls = tls;
        self
    }

    /// The name under which the server's operators see this connection.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The prefix of the subjects to which answers come; `_INBOX` unless set.
    ///
    /// For users that may not subscribe to `_INBOX.>`, so that other clients cannot listen to their
    /// answers: with `_INBOX_app`, the user needs the right to subscribe to `_INBOX_app.>`. Tokens
    /// are joined by single dots. Connecting with a prefix that has a wildcard, white space, an
    /// empty token or a `$` in front returns [`KvError::InvalidConfig`].
    pub fn inbox_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.inbox_prefix = Some(prefix.into());
        self
    }

    /// How long connecting may take as a whole, more than zero; 5 seconds unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The deadline of the connection's own operations (opening and deleting stores, health,
    /// shutdown), more than zero; 5 seconds unless set. A store's operations have [its
    /// own](crate::StoreConfig::deadline()).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The JetStream domain that holds the stores; the connected server's own unless set.
    ///
    /// A leaf node has the domain of its hub beside its own, if it has a JetStream at all. Without
    /// this a store opened through a leaf node with a JetStream is one of the leaf node's.
    /// Writes are then sent to `$JS.DOMAIN.API.$KV.…`, and requests to `$JS.DOMAIN.API.…`.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// The prefix of the JetStream API in place of `$JS.API`, for a JetStream that another account
    /// exports under other subjects. Stands before the subjects of writes too: the account imports
    /// `$JS.API.>` as `PREFIX.>`, and `$KV.BUCKET.>` as `PREFIX.$KV.BUCKET.>` for each bucket that
    /// it writes to. The user's rights have the prefix too (SECURITY.md). Excludes a
    /// [domain](Self::domain()).
    pub fn api_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.api_prefix = Some(prefix.into());
        self
    }
}

impl fmt::Debug for NatsConnectionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(|server| without_userinfo(server)).collect();
        f.debug_struct("NatsConnectionConfig")
            .field("servers", &servers)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("name", &self.name)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("connect_timeout", &self.connect_timeout)
            .field("deadline", &self.deadline)
            .field("domain", &self.domain)
            .field("api_prefix", &self.api_prefix)
            .finish()
    }
}

/// Returns the printable part of a server's address, without the text before an `@`.
pub(super) fn without_userinfo(server: &str) -> String {
    match (server.find("://"), server.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            format!("{}{}", &server[..scheme + 3], &server[at + 1..])
        }
        (_, Some(at)) => server[at + 1..].to_owned(),
        _ => server.to_owned(),
    }
}

/// Authentication. `Debug` names the kind, never the secret.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum NatsAuth {
    /// No authentication.
    #[default]
    None,
    /// User name and password.
    UserPassword {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Token(String),
    /// The seed of an NKey (it begins with `SU`).
    NKey(String),
    /// A file with the seed of an NKey. It is read again at each reconnect.
    NKeyFile(PathBuf),
    /// A credentials file (`.creds`), with a JWT and a seed. It is read again at each reconnect, so
    /// that renewed credentials count. A file that cannot be used then, because it is being
    /// written, fails that attempt only.
    CredentialsFile(PathBuf),
    /// The content of a credentials file.
    Credentials(String),
}

impl NatsAuth {
    /// The content of a credentials file, base64-encoded, as it is passed in environment variables.
    /// White space in and around it is ignored.
    ///
    /// # Errors
    /// [`KvError::InvalidConfig`] if it is no base64 of a text.
    pub fn credentials_base64(encoded: &str) -> Result<Self, KvError> {
        let reject = |reason: &str| KvError::InvalidConfig {
            field: "credentials",
            reason: reason.to_owned(),
        };
        let compact: String = encoded.chars().filter(|c| !c.is_whitespace()).collect();
        let bytes = STANDARD
            .decode(compact)
            .map_err(|_| reject("not base64; encode the whole content of the .creds file"))?;
        let text = String::from_utf8(bytes).map_err(|_| {
            reject("base64 of bytes that are not text; encode the whole content of the .creds file")
        })?;
        Ok(Self::Credentials(text))
    }
}

impl fmt::Debug for NatsAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::UserPassword { .. } => "UserPassword(<redacted>)",
            Self::Token(_) => "Token(<redacted>)",
            Self::NKey(_) => "NKey(<redacted>)",
            Self::NKeyFile(path) => return write!(f, "NKeyFile({path:?})"),
            Self::CredentialsFile(path) => return write!(f, "CredentialsFile({path:?})"),
            Self::Credentials(_) => "Credentials(<redacted>)",
        })
    }
}

/// TLS settings.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct NatsTls {
    /// Reject a server that does not offer TLS. One `tls://` address sets it for all servers.
    pub required: bool,
    /// Begin with TLS, before the server's greeting (the server's `handshake_first`).
    pub first: bool,
    /// A PEM file with root certificates to trust besides the system's.
    pub root_certificates: Option<PathBuf>,
    /// PEM files with the client's certificate chain and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

impl NatsTls {
    /// Returns the default settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reject a server that does not offer TLS.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Begin with TLS, before the server's greeting; implies [`required`](Self::required()).
    #[must_use]
    pub fn first(mut self) -> Self {
        self.first = true;
        self.required = true;
        self
    }

    /// Trust the root certificates in this PEM file too.
    #[must_use]
    pub fn root_certificates(mut self, pem: impl Into<PathBuf>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// Present this certificate: PEM files with its chain and its key.
    #[must_use]
    pub fn client_certificate(
        mut self,
        chain: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((chain.into(), key.into()));
        self
    }
}
