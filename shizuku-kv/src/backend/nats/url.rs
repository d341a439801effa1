//! A connection's configuration, read from a URL.
//!
//! Written here rather than with a URL crate because one URL names several hosts, which no URL grammar has.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::config::{NatsAuth, NatsConnectionConfig, NatsTls};
use crate::store::KvError;

const OPTIONS: &str =
    "creds, nkey, tls_ca, tls_cert, tls_key, tls_first, name, connect_timeout_ms, deadline_ms";

fn refuse<T>(reason: impl Into<String>) -> Result<T, KvError> {
    Err(KvError::InvalidUrl { reason: reason.into() })
}

/// See [`NatsConnectionConfig::from_url`].
pub(super) fn parse(url: &str) -> Result<NatsConnectionConfig, KvError> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return refuse("it has no scheme; write nats://HOST:PORT or tls://HOST:PORT");
    };
    let lower = scheme.to_ascii_lowercase();
    let tls_required = match lower.as_str() {
        "nats" => false,
        "tls" => true,
        _ => return refuse("its scheme is not nats or tls"),
    };
    // The query is cut off before the userinfo, so that an `@` in a file's name is no userinfo; a `?` in a password
    // has to be written as %3F.
    let (authority, query) = match rest.split_once('?') {
        Some((authority, query)) => (authority, Some(query)),
        None => (rest, None),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.rsplit('@').next().is_some_and(|hosts| hosts.contains('/')) {
        return refuse(
            "a path after the host means nothing here; name the store with `store(name)`",
        );
    }

    if !authority.contains('@') && query.is_some_and(|query| query.contains('@')) {
        return refuse(
            "an @ stands after a ?; write a ? in a password as %3F, an @ in an option as %40",
        );
    }

    let mut userinfo = None;
    let mut servers = Vec::new();
    for part in authority.split(',') {
        if userinfo.is_none() && !servers.is_empty() && part.contains('@') {
            return refuse(
                "userinfo stands before the first host; write a comma in a password as %2C",
            );
        }
        // Each host may repeat the scheme and the userinfo, as other clients write it.
        let part = part.strip_prefix(&format!("{scheme}://")).unwrap_or(part);
        let (own, host) = match part.rsplit_once('@') {
            Some((own, host)) => (Some(own), host),
            None => (None, part),
        };
        if let Some(own) = own
            && userinfo.replace(own).is_some_and(|before| before != own)
        {
            return refuse("the hosts have different users; all servers get the same credentials");
        }
        check_host(host).or_else(refuse)?;
        servers.push(format!("{lower}://{host}"));
    }

    let mut config = NatsConnectionConfig::new(servers);
    config.tls.required = tls_required;
    if let Some(userinfo) = userinfo {
        config.auth = parse_userinfo(userinfo)?;
    }
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        apply_options(&mut config, query, authority.contains('@') || query.contains('@'))?;
    }
    Ok(config)
}

/// Checks `HOST` or `HOST:PORT`. The error does not repeat it: a password that was not encoded can stand there.
pub(super) fn check_host(host: &str) -> Result<(), &'static str> {
    // An IPv6 address stands in brackets and has colons of its own.
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, after)) => (address, Some(after.strip_prefix(':').unwrap_or_default())),
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if name.is_empty() {
        return Err("a host is missing; write nats://HOST:PORT");
    }
    if name.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#')) {
        return Err(
            "a host has a character that no host has; percent-encode what is in the userinfo",
        );
    }
    if let Some(port) = port
        && port.parse::<u16>().ok().filter(|port| *port != 0).is_none()
    {
        return Err("a port is not between 1 and 65535; percent-encode what is in the userinfo");
    }
    Ok(())
}

fn parse_userinfo(userinfo: &str) -> Result<NatsAuth, KvError> {
    Ok(match userinfo.split_once(':') {
        Some((user, password)) => {
            NatsAuth::UserPassword { user: decode(user)?, password: decode(password)? }
        }
        None if userinfo.is_empty() => return refuse("the userinfo before the @ is empty"),
        None => NatsAuth::Token(decode(userinfo)?),
    })
}

fn decode(text: &str) -> Result<String, KvError> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => refuse("a percent-encoded part is not UTF-8"),
    }
}

fn apply_options(
    config: &mut NatsConnectionConfig,
    query: &str,
    has_userinfo: bool,
) -> Result<(), KvError> {
    let (mut certificate, mut key) = (None, None);
    let mut seen = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let Some((name, value)) = option.split_once('=') else {
            return refuse("an option has no value; write ?OPTION=VALUE");
        };
        // An unknown name is not repeated where there is userinfo: it may be a part of a password.
        let known = OPTIONS.split(", ").any(|known| known == name);
        if !known {
            let shown = if has_userinfo { String::new() } else { format!(" {name:?}") };
            return refuse(format!("unknown option{shown}; there are {OPTIONS}"));
        }
        if seen.contains(&name) {
            return refuse(format!("option {name:?} is given twice"));
        }
        seen.push(name);
        let value = decode(value)?;
        match name {
            "creds" => authenticate(config, NatsAuth::CredentialsFile(value.into()))?,
            "nkey" => authenticate(config, NatsAuth::NKeyFile(value.into()))?,
            "tls_ca" => config.tls.root_certificates = Some(value.into()),
            "tls_cert" => certificate = Some(PathBuf::from(value)),
            "tls_key" => key = Some(PathBuf::from(value)),
            "tls_first" => match value.as_str() {
                "true" => config.tls = std::mem::take::<NatsTls>(&mut config.tls).first(),
                "false" => config.tls.first = false,
                _ => return refuse("option \"tls_first\" is true or false"),
            },
            "name" => config.name = Some(value),
            "connect_timeout_ms" => config.connect_timeout = milliseconds(name, &value)?,
            "deadline_ms" => config.deadline = milliseconds(name, &value)?,
            // Refused above.
            _ => {}
        }
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => config.tls.client_certificate = Some((certificate, key)),
        (None, None) => {}
        _ => return refuse("options \"tls_cert\" and \"tls_key\" are only useful together"),
    }
    Ok(())
}

fn authenticate(config: &mut NatsConnectionConfig, auth: NatsAuth) -> Result<(), KvError> {
    if !matches!(config.auth, NatsAuth::None) {
        return refuse("it has more than one kind of credentials; give userinfo, creds or nkey");
    }
    config.auth = auth;
    Ok(())
}

fn milliseconds(name: &str, value: &str) -> Result<Duration, KvError> {
    match value.parse::<u64>() {
        Ok(value) if value > 0 => Ok(Duration::from_millis(value)),
        _ => refuse(format!("option {name:?} is a number of milliseconds, at least 1")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn reason(url: &str) -> String {
        parse(url).unwrap_err().to_string()
    }

    #[test]
    fn several_hosts_with_userinfo_and_options() {
        let config = parse(
            "nats://app:p%40ss@one:4222,two,[::1]:4333?name=x%20y&deadline_ms=1500&tls_ca=/a@b.pem",
        )
        .unwrap();
        assert_eq!(config.servers, ["nats://one:4222", "nats://two", "nats://[::1]:4333"]);
        assert!(
            matches!(&config.auth, NatsAuth::UserPassword { user, password } if user == "app" && password == "p@ss")
        );
        assert_eq!(config.name.as_deref(), Some("x y"));
        assert_eq!(config.deadline, Duration::from_millis(1500));
        assert_eq!(config.tls.root_certificates, Some("/a@b.pem".into()));
        assert!(!config.tls.required);
        assert!(!format!("{config:?}").contains("p@ss"));
    }

    #[test]
    fn tokens_files_and_tls() {
        assert!(
            matches!(parse("nats://tok%2Fen@h").unwrap().auth, NatsAuth::Token(t) if t == "tok/en")
        );
        let config =
            parse("tls://h:4222/?creds=/run/app.creds&tls_cert=c&tls_key=k&tls_first=true")
                .unwrap();
        assert!(config.tls.required && config.tls.first);
        assert_eq!(config.tls.client_certificate, Some(("c".into(), "k".into())));
        assert!(
            matches!(config.auth, NatsAuth::CredentialsFile(path) if path.as_os_str() == "/run/app.creds")
        );
        let repeated = parse("nats://u:p@a,nats://u:p@b").unwrap();
        assert_eq!(repeated.servers, ["nats://a", "nats://b"]);
    }

    #[test]
    fn what_is_refused_says_why_and_shows_no_secret() {
        for (url, needle) in [
            ("nats:u:hunter2@h", "no scheme"),
            ("http://u:hunter2@h", "not nats or tls"),
            ("nats://u:@hunter2:,x@h", "port"),
            ("nats://u:@h?hunter2=@h", "unknown option"),
            ("nats://u:hunter2@", "host is missing"),
            ("nats://u:hunter2@h:0", "port"),
            ("nats://u:hunter2@h:99999", "port"),
            ("nats://u:hunter2@h:port", "port"),
            ("nats://u:hunter2@h/bucket", "path"),
            ("nats://u:hunter2@a,x:hunter2@b", "different users"),
            ("nats://u:hunter2@h?cred=x", "unknown option"),
            ("nats://u:hunter2@h?creds=x", "more than one kind"),
            ("nats://u:hunter2@h?name", "no value"),
            ("nats://u:hunter2@h?name=a&name=b", "twice"),
            ("nats://u:hunter2@h?deadline_ms=0", "milliseconds"),
            ("nats://u:hunter2@h?tls_cert=a", "together"),
            ("nats://u:hunter2%ff@h", "UTF-8"),
            ("nats://@h", "empty"),
            ("nats://u:1?hunter2=x@h", "%3F"),
            ("nats://u:1,hunter2@h", "%2C"),
        ] {
            let reason = reason(url);
            assert!(reason.contains(needle), "{url}: {reason}");
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
