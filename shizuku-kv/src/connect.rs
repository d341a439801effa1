//! Opening a backend by its URL.

use std::env::VarError;
use std::sync::Arc;

use crate::store::{Connection, KvError, in_runtime};

/// The environment variable that [`connect_from_env`] reads.
pub const URL_VARIABLE: &str = "SHIZUKU_KV_URL";

/// Connects to the backend that a URL names.
///
/// | URL | backend |
/// |---|---|
/// | `memory:` | in this process; every call makes a world of its own (feature `memory`) |
/// | `nats://HOST[:PORT][,HOST…]`, `tls://…` | NATS JetStream (feature `nats`); for userinfo and options see `NatsConnectionConfig::from_url` |
///
/// # Errors
/// Returns [`KvError::InvalidUrl`] if the URL cannot be parsed, [`KvError::Unsupported`] if this
/// build has no backend for the scheme, and [`KvError::NoRuntime`] outside of a tokio runtime.
/// Otherwise returns the errors of the backend's own `connect`. No message repeats the URL's
/// userinfo.
///
/// Dropping the future is safe.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), shizuku_kv::KvError> {
/// let connection = shizuku_kv::connect("memory:").await?;
/// let store = connection.store("config").await?;
/// # Ok(())
/// # }
/// ```
pub async fn connect(url: &str) -> Result<Arc<dyn Connection>, KvError> {
    in_runtime("connect")?;
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(KvError::InvalidUrl {
            reason: format!("it has no scheme; known are {}", known()),
        });
    };
    // Schemes are compared as RFC 3986 says, whatever their case.
    let known_as = scheme.to_ascii_lowercase();
    match known_as.as_str() {
        #[cfg(feature = "memory")]
        "memory" if rest.is_empty() => Ok(Arc::new(crate::MemoryConnection::new())),
        #[cfg(feature = "memory")]
        "memory" => Err(KvError::InvalidUrl {
            reason: "nothing may follow \"memory:\": every connection is a world of its own"
                .to_owned(),
        }),
        #[cfg(feature = "nats")]
        "nats" | "tls" => {
            let config = crate::NatsConnectionConfig::from_url(&format!("{known_as}:{rest}"))?;
            Ok(Arc::new(crate::nats_connect(config).await?))
        }
        #[cfg(not(feature = "memory"))]
        "memory" => Err(not_in_this_build("memory")),
        #[cfg(not(feature = "nats"))]
        "nats" | "tls" => Err(not_in_this_build("nats")),
        // A scheme is shown only if it stands and looks like one: a URL without can begin with a user's name, or be
        // nothing but a password.
        _ if looks_like_a_scheme(scheme) && rest.starts_with("//") => Err(KvError::Unsupported {
            operation: "connect",
            reason: format!("unknown scheme {scheme:?}; known are {}", known()),
        }),
        _ => Err(KvError::InvalidUrl {
            reason: format!("it has no scheme that is known; known are {}", known()),
        }),
    }
}

/// Connects to the backend that the environment variable `SHIZUKU_KV_URL` names.
///
/// There is no default: a service that forgot the variable must not run on a store that vanishes with it.
///
/// # Errors
/// [`KvError::InvalidUrl`] if the variable is not set; else as for [`connect`].
pub async fn connect_from_env() -> Result<Arc<dyn Connection>, KvError> {
    match std::env::var(URL_VARIABLE) {
        Ok(url) => connect(&url).await,
        Err(VarError::NotPresent) => Err(KvError::InvalidUrl {
            reason: format!(
                "the environment variable {URL_VARIABLE} is not set; set it to memory: or nats://HOST:PORT"
            ),
        }),
        Err(VarError::NotUnicode(_)) => Err(KvError::InvalidUrl {
            reason: format!("the environment variable {URL_VARIABLE} is not UTF-8 text"),
        }),
    }
}

/// The grammar of RFC 3986, and short.
fn looks_like_a_scheme(scheme: &str) -> bool {
    scheme.len() <= 20
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

#[cfg(not(all(feature = "memory", feature = "nats")))]
fn not_in_this_build(feature: &str) -> KvError {
    KvError::Unsupported {
        operation: "connect",
        reason: format!(
            "this build has no such backend: enable the feature {feature:?} of shizuku-kv"
        ),
    }
}

/// The schemes of this build, for error messages.
fn known() -> String {
    let mut known = Vec::new();
    if cfg!(feature = "memory") {
        known.push("memory:");
    }
    if cfg!(feature = "nats") {
        known.extend(["nats://", "tls://"]);
    }
    known.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[cfg(feature = "memory")]
    #[tokio::test]
    async fn a_scheme_is_known_in_any_case() {
        for url in ["memory:", "MEMORY:", "Memory:"] {
            connect(url).await.unwrap().store("config").await.unwrap();
        }
    }

    #[cfg(feature = "nats")]
    #[tokio::test]
    async fn a_scheme_of_nats_is_known_in_any_case() {
        for url in ["NATS://", "Nats://", "TLS://"] {
            let error = connect(url).await.unwrap_err();
            assert!(error.to_string().contains("host is missing"), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn an_unknown_scheme_is_shown_only_before_slashes() {
        let shown = connect("redis://host").await.unwrap_err();
        assert!(shown.to_string().contains("redis"), "{shown}");
        for url in ["hunter2:", "hunter2", "hunter2:4222", "hunter2:/", "HUNTER2:"] {
            let error = connect(url).await.unwrap_err();
            let text = format!("{error} {error:?}").to_lowercase();
            assert!(!text.contains("hunter2"), "{url}: {error:?}");
            assert!(matches!(error, KvError::InvalidUrl { .. }), "{url}: {error:?}");
        }
    }
}
