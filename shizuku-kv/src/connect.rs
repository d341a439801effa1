//! Opens a backend by its URL.

use std::env::VarError;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::backend::around;
use crate::store::{Connection, KvError, in_runtime};

/// The environment variable that [`connect_from_env`] reads.
pub const URL_VARIABLE: &str = "SHIZUKU_KV_URL";

/// Connects to the backend that a URL names.
///
/// | URL | backend |
/// |---|---|
/// | `memory:` | in this process; every call creates a world of its own (feature `memory`) |
/// | `file:PATH[?OPTIONS]` | in a folder of this machine (feature `file`); for options see `FileConnection` |
/// | `nats://HOST[:PORT][,HOST…]`, `tls://…` | NATS JetStream (feature `nats`); for userinfo and options see `NatsConnectionConfig::from_url` |
///
/// # Errors
/// Returns [`KvError::InvalidUrl`] if the URL cannot be parsed, [`KvError::Unsupported`] if this
/// build has no backend for the scheme, and [`KvError::NoRuntime`] outside of a tokio runtime.
/// Otherwise returns the errors of the backend's own `connect`. No message repeats the URL's
/// userinfo.
///
/// Cancel safe: dropping the future ends the attempt.
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
    if let Some(reason) = around(url) {
        let reason = format!("{reason}; known are {}", known());
        return Err(KvError::InvalidUrl { reason });
    }
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(KvError::InvalidUrl { reason: no_scheme(url) });
    };
    // Schemes are compared without regard to case (RFC 3986).
    let known_as = scheme.to_ascii_lowercase();
    match known_as.as_str() {
        #[cfg(feature = "memory")]
        "memory" if rest.is_empty() => Ok(Arc::new(crate::MemoryConnection::new())),
        #[cfg(feature = "memory")]
        "memory" => Err(KvError::InvalidUrl {
            reason: "nothing may follow \"memory:\": every connection is a world of its own"
                .to_owned(),
        }),
        #[cfg(feature = "file")]
        "file" => Ok(Arc::new(crate::FileConnection::open(&format!("file:{rest}")).await?)),
        #[cfg(feature = "nats")]
        "nats" | "tls" => {
            let config = crate::NatsConnectionConfig::from_url(&format!("{known_as}:{rest}"))?;
            Ok(Arc::new(crate::nats_connect(config).await?))
        }
        #[cfg(not(feature = "memory"))]
        "memory" => Err(not_in_this_build("memory")),
        #[cfg(not(feature = "file"))]
        "file" => Err(not_in_this_build("file")),
        #[cfg(not(feature = "nats"))]
        "nats" | "tls" => Err(not_in_this_build("nats")),
        // A scheme is shown only if it has the position and the form of one. A URL without a scheme
        // can begin with a user's name, or consist of a password.
        _ if looks_like_a_scheme(scheme) && rest.starts_with("//") => Err(KvError::Unsupported {
            operation: "connect",
            reason: format!("unknown scheme {scheme:?}; known are {}", known()),
        }),
        _ => Err(KvError::InvalidUrl { reason: no_scheme(url) }),
    }
}

/// Returns the reason for rejecting a URL without a known scheme. The reason quotes the URL only if
/// it is the address of a host, which cannot be a user name or a password.
fn no_scheme(url: &str) -> String {
    let with_scheme = match is_address(url) {
        true => format!("nats://{url}"),
        false => "nats://HOST:PORT".to_owned(),
    };
    format!(
        "it has no scheme that this library knows; write {with_scheme} if it is a NATS server; known are {}",
        known()
    )
}

/// Returns whether a text is the address of a host. This is `localhost` or an IP address with an
/// optional port, or a name with dots and a port.
fn is_address(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok() || text.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    let is_domain = || {
        port.is_some()
            && host.contains('.')
            && host.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
    };
    is_port && (host == "localhost" || is_domain())
}

/// Connects to the backend that the environment variable `SHIZUKU_KV_URL` names.
///
/// No default exists: a service without the variable must not run on a store that vanishes with it.
///
/// # Errors
/// Returns [`KvError::InvalidUrl`] if the variable is not set or empty; otherwise as for
/// [`connect`].
pub async fn connect_from_env() -> Result<Arc<dyn Connection>, KvError> {
    match std::env::var(URL_VARIABLE) {
        Ok(url) if url.trim().is_empty() => Err(not_set("is empty")),
        Ok(url) => connect(&url).await,
        Err(VarError::NotPresent) => Err(not_set("is not set")),
        Err(VarError::NotUnicode(_)) => Err(KvError::InvalidUrl {
            reason: format!("the environment variable {URL_VARIABLE} is not UTF-8 text"),
        }),
    }
}

fn not_set(fault: &str) -> KvError {
    KvError::InvalidUrl {
        reason: format!(
            "the environment variable {URL_VARIABLE} {fault}; set it to memory:, file:PATH or nats://HOST:PORT"
        ),
    }
}

/// Returns whether a text is short and a scheme by the grammar of RFC 3986.
fn looks_like_a_scheme(scheme: &str) -> bool {
    scheme.len() <= 20
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

#[cfg(not(all(feature = "memory", feature = "file", feature = "nats")))]
fn not_in_this_build(feature: &str) -> KvError {
    KvError::Unsupported {
        operation: "connect",
        reason: format!(
            "this build has no such backend: enable the feature {feature:?} of shizuku-kv"
        ),
    }
}

/// Returns the schemes of this build, for error messages.
fn known() -> String {
    let mut known = Vec::new();
    if cfg!(feature = "memory") {
        known.push("memory:");
    }
    if cfg!(feature = "file") {
        known.push("file:");
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
