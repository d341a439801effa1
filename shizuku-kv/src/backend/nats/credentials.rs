//! Credentials that are read again at each connection, so that renewed ones count (ADR 0067).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::{Auth, AuthError};
use nkeys::{KeyPair, KeyPairType};

use super::config::NatsAuth;
use crate::store::{KvError, KvResult};

/// Source of a user's key, and of the JWT if there is one.
#[derive(Clone)]
pub(super) enum Source {
    Seed(String),
    SeedFile(PathBuf),
    Credentials(String),
    CredentialsFile(PathBuf),
}

/// Credentials of a user.
struct Identity {
    jwt: Option<String>,
    key: KeyPair,
}

impl Source {
    /// The source of a user that signs; `None` for other kinds.
    pub(super) fn of(auth: &NatsAuth) -> Option<Self> {
        Some(match auth {
            NatsAuth::NKey(seed) => Self::Seed(seed.clone()),
            NatsAuth::NKeyFile(path) => Self::SeedFile(path.clone()),
            NatsAuth::Credentials(text) => Self::Credentials(text.clone()),
            NatsAuth::CredentialsFile(path) => Self::CredentialsFile(path.clone()),
            _ => return None,
        })
    }

    /// Reads the source.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidConfig`], which names the file and never its content.
    async fn read(&self) -> KvResult<Identity> {
        match self {
            Self::Seed(seed) => of_seed(seed),
            Self::SeedFile(path) => of_seed(&read_file("nkey", path).await?).map_err(in_file(path)),
            Self::Credentials(text) => of_credentials(text),
            Self::CredentialsFile(path) => {
                of_credentials(&read_file("credentials", path).await?).map_err(in_file(path))
            }
        }
    }

    /// Checks that the source can be used.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub(super) async fn check(&self) -> KvResult<()> {
        self.read().await.map(drop)
    }

    /// The credentials that a connection sends for this nonce.
    pub(super) async fn sign(self: Arc<Self>, nonce: Vec<u8>) -> Result<Auth, AuthError> {
        let identity = self.read().await.map_err(|error| AuthError::new(error.to_string()))?;
        let mut auth = Auth::new();
        let signature = identity.key.sign(&nonce);
        auth.signature = Some(signature.map_err(|_| AuthError::new("the key cannot sign"))?);
        match identity.jwt {
            Some(jwt) => auth.jwt = Some(jwt),
            None => auth.nkey = Some(identity.key.public_key()),
        }
        Ok(auth)
    }
}

/// Adds the file's name to an error about its content.
fn in_file(path: &Path) -> impl Fn(KvError) -> KvError + use<'_> {
    move |error| match error {
        KvError::InvalidConfig { field, reason } => KvError::InvalidConfig {
            field,
            reason: format!("file {:?}: {reason}", path.display().to_string()),
        },
        error => error,
    }
}

/// Checked here, checksum included, since the client library finds out only when it signs, and then
/// blames the server.
fn of_seed(seed: &str) -> KvResult<Identity> {
    match KeyPair::from_seed(seed.trim()) {
        Ok(key) if key.key_pair_type() == KeyPairType::User => Ok(Identity { jwt: None, key }),
        _ => Err(KvError::InvalidConfig {
            field: "nkey",
            reason: "not the seed of a user's NKey: 58 characters that begin with SU and end in a checksum"
                .to_owned(),
        }),
    }
}

/// The JWT and the seed stand in this order on lines of their own, each between two lines of
/// dashes.
fn of_credentials(text: &str) -> KvResult<Identity> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let is_mark = |line: &str| line.len() > 6 && line.starts_with("---") && line.ends_with("---");
    let is_body = |line: &str| {
        !line.is_empty()
            && line.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '='))
    };
    let mut blocks = lines.windows(3).filter_map(|lines| match lines {
        [begin, body, end] if is_mark(begin) && is_mark(end) && is_body(body) => Some(*body),
        _ => None,
    });
    if let (Some(jwt), Some(seed)) = (blocks.next(), blocks.next())
        && let Ok(key) = KeyPair::from_seed(seed)
    {
        return Ok(Identity { jwt: Some(jwt.to_owned()), key });
    }
    Err(KvError::InvalidConfig {
        field: "credentials",
        // The parser's error is not repeated: it could quote what it read.
        reason: "no JWT with a seed; give the content of a .creds file".to_owned(),
    })
}

/// Reads a text file, without blocking the runtime.
pub(super) async fn read_file(field: &'static str, path: &Path) -> KvResult<String> {
    let path = path.to_owned();
    let shown = path.display().to_string();
    match tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(KvError::InvalidConfig {
            field,
            reason: format!("cannot read file {shown:?}: {error}"),
        }),
        Err(_) => Err(KvError::InvalidConfig {
            field,
            reason: format!("cannot read file {shown:?}: the runtime is shutting down"),
        }),
    }
}
