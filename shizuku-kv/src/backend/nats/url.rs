//! A connection's configuration, read from a URL.
//!
//! Written here rather than with a URL crate because one URL names several hosts, which no URL
//! grammar has (ADR 0017).

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::config::{NatsAuth, NatsConnectionConfig, NatsTls};
use super::denials::check_inbox_prefix;
use crate::backend::around;
use crate::store::KvError;

const OPTIONS: [&str; 12] = [
    "creds",
    "nkey",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "tls_first",
    "name",
    "inbox_prefix",
    "connect_timeout_ms",
    "deadline_ms",
    "domain",
    "api_prefix",
];

/// Names that other clients and tools use, each with the name of the option here.
const ALIASES: [(&str, &str); 10] = [
    ("credential", "creds"),
    ("credentials", "creds"),
    ("js_domain", "domain"),
    ("jsdomain", "domain"),
    ("js_api_prefix", "api_prefix"),
    ("tlsca", "tls_ca"),
    ("ca", "tls_ca"),
    ("cert", "tls_cert"),
    ("key", "tls_key"),
    ("timeout", "connect_timeout_ms"),
];

impl NatsConnectionConfig {
    /// Parses a URL: `nats://[USER:PASSWORD@|TOKEN@]HOST[:PORT][,HOST[:PORT]…][?OPTION=VALUE&…]`,
    /// or `tls://` to insist on TLS.
    ///
    /// Options: `domain` and `api_prefix` (see [`domain`](Self::domain()) and
    /// [`api_prefix`](Self::api_prefix())), `creds` (a credentials file), `nkey` (a file with an
    /// NKey seed), `tls_ca`, `tls_cert`, `tls_key` (PEM files), `tls_first` (`true`: TLS before the
    /// server's greeting), `name`, `inbox_prefix`, `connect_timeout_ms`, `deadline_ms`. Values are
    /// percent-decoded.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidUrl`], which names the fault and never repeats the userinfo.
    pub fn from_url(url: &str) -> Result<Self, KvError> {
        parse(url)
    }
}

fn reject<T>(reason: impl Into<String>) -> Result<T, KvError> {
    Err(KvError::InvalidUrl { reason: reason.into() })
}

/// See [`NatsConnectionConfig::from_url`].
pub(super) fn parse(url: &str) -> Result<NatsConnectionConfig, KvError> {
    if let Some(reason) = around(url) {
        return reject(reason);
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return reject("it has no scheme; write nats://HOST:PORT or tls://HOST:PORT");
    };
    let lower = scheme.to_ascii_lowercase();
    let tls_required = match lower.as_str() {
        "nats" => false,
        "tls" => true,
        _ => return reject("its scheme is not nats or tls"),
    };
    // The query is cut off before the userinfo, so that an `@` in a file's name is no userinfo; a
    // `?` in a password has to be written as %3F.
    let (authority, query) = match rest.split_once('?') {
        Some((authority, query)) => (authority, Some(query)),
        None => (rest, None),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if !authority.contains('@') && query.is_some_and(|query| query.contains('@')) {
        return reject(
            "an @ stands after a ?; write a ? in a password as %3F, an @ in an option as %40",
        );
    }

    let mut userinfo = None;
    let mut servers = Vec::new();
    for part in authority.split(',') {
        if userinfo.is_none() && !servers.is_empty() && part.contains('@') {
            return reject(
                "userinfo stands before the first host; write a comma in a password as %2C",
            );
        }
        // Each further host may repeat the scheme and the userinfo, as other clients write it.
        let part = match scheme_of(part) {
            Some((_, _)) if servers.is_empty() => {
                return reject("it has two schemes; write one, as in nats://HOST:PORT");
            }
            Some((own, part)) if own.eq_ignore_ascii_case(&lower) => part,
            Some((_, _)) => {
                return reject(
                    "its hosts have different schemes; one connection has TLS to all of them or to none: write tls:// \
                     once, before the first",
                );
            }
            None => part,
        };
        let (own, host) = match part.rsplit_once('@') {
            Some((own, host)) => (Some(own), host),
            None => (None, part),
        };
        if let Some(own) = own {
            check_userinfo(own)?;
            if userinfo.replace(own).is_some_and(|before| before != own) {
                return reject(
                    "the hosts have different users; all servers get the same credentials",
                );
            }
        }
        // A part of a password that contains an unescaped comma can stand in place of a host.
        let hint = match own.is_none() && authority.contains('@') {
            true => "; percent-encode the userinfo, a comma as %2C",
            false => "",
        };
        check_host(host).or_else(|reason| reject(format!("{reason}{hint}")))?;
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

/// Splits a host into its scheme and the rest. A password may contain `://` too, but not at the
/// position of a scheme.
fn scheme_of(part: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = part.split_once("://")?;
    scheme.chars().all(|c| c.is_ascii_alphabetic()).then_some((scheme, rest))
}

/// Rejects characters that end a userinfo in other programs, because they may not be meant as a
/// part of it. The error does not repeat the userinfo.
fn check_userinfo(userinfo: &str) -> Result<(), KvError> {
    for (character, encoded) in [('/', "%2F"), ('#', "%23"), ('@', "%40")] {
        if userinfo.contains(character) {
            return reject(format!(
                "the user name or password contains an unescaped {character}; percent-encode it as {encoded}"
            ));
        }
    }
    if userinfo.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return reject(
            "the user name or password contains white space; percent-encode it, a space as %20",
        );
    }
    Ok(())
}

/// Whether a server's address demands TLS.
pub(super) fn is_tls(server: &str) -> bool {
    server.split_once("://").is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("tls"))
}

/// Checks an address of [`NatsConnectionConfig::servers`], and returns it with its scheme.
///
/// # Errors
/// Returns a description of the mistake, without repeating text that may be userinfo.
pub(super) fn server(server: &str) -> Result<String, String> {
    if server.contains('@') {
        return Err(
            "an address must not contain userinfo; use `auth`, or `NatsConnectionConfig::from_url`"
                .to_owned(),
        );
    }
    let of_this = |reason: &str| format!("{server:?}: {reason}");
    if server.trim() != server {
        return Err(of_this("white space stands before or after it; remove it"));
    }
    let (scheme, host) = server.split_once("://").unwrap_or(("nats", server));
    let scheme = scheme.to_ascii_lowercase();
    if !matches!(scheme.as_str(), "nats" | "tls") {
        return Err(of_this("the scheme is not nats or tls"));
    }
    if host.contains(',') {
        return Err(of_this("several hosts in one address; give each an address of its own"));
    }
    if host.contains('?') {
        return Err(of_this(
            "options belong to `NatsConnectionConfig::from_url`, not to an address",
        ));
    }
    let host = host.strip_suffix('/').unwrap_or(host);
    check_host(host).map_err(of_this)?;
    Ok(format!("{scheme}://{host}"))
}

/// Checks `HOST` or `HOST:PORT`. The error does not repeat it: a password that was not encoded can
/// stand there.
fn check_host(host: &str) -> Result<(), &'static str> {
    if host.contains("://") {
        return Err("it has two schemes; write one, as in nats://HOST:PORT");
    }
    if host.contains('/') {
        return Err(
            "a path after the host is not supported; name the store with `store(name)`, and write a / in a password \
             as %2F",
        );
    }
    if host.contains('#') {
        return Err("a # after the host is not supported; write a # in a password as %23");
    }
    // An IPv6 address stands in brackets and has colons of its own.
    let (name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((address, after))) => {
            // A zone follows a percent sign.
            if address.split('%').next().is_none_or(|address| address.parse::<Ipv6Addr>().is_err())
            {
                return Err("the text in brackets is not an IPv6 address, as in nats://[::1]:4222");
            }
            let port = match after.strip_prefix(':') {
                None if after.is_empty() => None,
                port => Some(port.unwrap_or_default()),
            };
            return check_port(port);
        }
        Some(None) => return Err("a [ has no ]; write an IPv6 address as in nats://[::1]:4222"),
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if host.matches(':').count() > 1
        && host.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'))
    {
        return Err("an IPv6 address needs brackets, as in nats://[::1]:4222");
    }
    if name.is_empty() {
        return Err("a host is missing; write nats://HOST:PORT");
    }
    let is_of_hosts = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !name.chars().all(is_of_hosts) {
        return Err("a host contains a character that no host has; write nats://HOST:PORT");
    }
    check_port(port)
}

fn check_port(port: Option<&str>) -> Result<(), &'static str> {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    match port {
        Some(port) if !is_port(port) || port.starts_with('+') => {
            Err("a port is not a number between 1 and 65535, as in nats://HOST:4222")
        }
        _ => Ok(()),
    }
}

fn parse_userinfo(userinfo: &str) -> Result<NatsAuth, KvError> {
    Ok(match userinfo.split_once(':') {
        Some((user, password)) => {
            NatsAuth::UserPassword { user: decode(user)?, password: decode(password)? }
        }
        None if userinfo.is_empty() => return reject("the userinfo before the @ is empty"),
        None => NatsAuth::Token(decode(userinfo)?),
    })
}

fn decode(text: &str) -> Result<String, KvError> {
    let is_encoded = |rest: &str| {
        let digits = rest.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    };
    if !text.split('%').skip(1).all(is_encoded) {
        return reject("a % is not followed by two hexadecimal digits; write a % itself as %25");
    }
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => reject("a percent-encoded part is not UTF-8"),
    }
}

/// Returns the option with a name similar to an unknown one.
fn similar(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase().replace('-', "_");
    let alias = ALIASES.iter().find(|(alias, _)| *alias == lower).map(|(_, option)| *option);
    let begins = |option: &&str| lower.len() >= 3 && option.starts_with(lower.as_str());
    alias.or_else(|| OPTIONS.into_iter().find(begins)).or_else(|| {
        OPTIONS
            .into_iter()
            .min_by_key(|option| distance(&lower, option))
            .filter(|option| distance(&lower, option) <= 2)
    })
}

/// Returns the edit distance of two names: the number of letters to change, insert or remove.
fn distance(one: &str, other: &str) -> usize {
    let other = other.as_bytes();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, byte) in one.bytes().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, compared) in other.iter().enumerate() {
            let changed = diagonal + usize::from(byte != *compared);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
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
            return reject("an option has no value; write ?OPTION=VALUE");
        };
        // An unknown name is not repeated where there is userinfo: it may be a part of a password.
        if !OPTIONS.contains(&name) {
            let shown = if has_userinfo { String::new() } else { format!(" {name:?}") };
            let similar = similar(name)
                .map_or_else(String::new, |option| format!("; did you mean {option:?}?"));
            let all = OPTIONS.join(", ");
            return reject(format!("unknown option{shown}{similar}; there are {all}"));
        }
        if seen.contains(&name) {
            return reject(format!("option {name:?} is given twice"));
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
                _ => return reject("option \"tls_first\" is true or false"),
            },
            "name" => config.name = Some(value),
            "inbox_prefix" => {
                if let Err(reason) = check_inbox_prefix(&value) {
                    return reject(format!("option \"inbox_prefix\": {reason}"));
                }
                config.inbox_prefix = Some(value);
            }
            "connect_timeout_ms" => config.connect_timeout = milliseconds(name, &value)?,
            "deadline_ms" => config.deadline = milliseconds(name, &value)?,
            "domain" => config.domain = Some(value),
            "api_prefix" => config.api_prefix = Some(value),
            // Rejected above.
            _ => {}
        }
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => config.tls.client_certificate = Some((certificate, key)),
        (None, None) => {}
        _ => return reject("options \"tls_cert\" and \"tls_key\" need each other; give both"),
    }
    Ok(())
}

fn authenticate(config: &mut NatsConnectionConfig, auth: NatsAuth) -> Result<(), KvError> {
    if !matches!(config.auth, NatsAuth::None) {
        return reject("it has more than one kind of credentials; give userinfo, creds or nkey");
    }
    config.auth = auth;
    Ok(())
}

fn milliseconds(name: &str, value: &str) -> Result<Duration, KvError> {
    match value.parse::<u64>() {
        Ok(value) if value > 0 => Ok(Duration::from_millis(value)),
        _ => reject(format!("option {name:?} is a number of milliseconds, at least 1")),
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
        let config =
            parse("nats://app:p%40ss@one:4222,two,[::1]:4333?name=x%20y&inbox_prefix=_INBOX_app&deadline_ms=1500&tls_ca=/a@b.pem")
                .unwrap();
        assert_eq!(config.servers, ["nats://one:4222", "nats://two", "nats://[::1]:4333"]);
        assert!(matches!(
            &config.auth,
            NatsAuth::UserPassword { user, password } if user == "app" && password == "p@ss"
        ));
        assert_eq!(config.name.as_deref(), Some("x y"));
        assert_eq!(config.inbox_prefix.as_deref(), Some("_INBOX_app"));
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
        for url in
            ["nats://u:p@a,nats://u:p@b", "nats://a,nats://b", "NATS://a,nats://b", "nats://a,b/"]
        {
            assert_eq!(parse(url).unwrap().servers, ["nats://a", "nats://b"], "{url}");
        }
        let leaf = parse("nats://h?domain=hub").unwrap();
        assert_eq!((leaf.domain.as_deref(), leaf.api_prefix), (Some("hub"), None));
        assert_eq!(
            parse("nats://h?api_prefix=JS.hub.API").unwrap().api_prefix.as_deref(),
            Some("JS.hub.API")
        );
    }

    #[test]
    fn malformed_url_names_the_mistake_and_no_secret() {
        for (url, needle) in [
            ("nats://u:hun/ter2@h", "%2F"),
            ("nats://u:hun#ter2@h", "%23"),
            ("nats://u:hun@ter2@h", "%40"),
            ("nats://u:hunter2 @h", "%20"),
            ("nats://u:hunter2%@h", "%25"),
            ("nats://u:hunter2%zz@h", "%25"),
            ("nats://u:hunter2@h?name=100%", "%25"),
            ("nats://u:hunter2@h#part", "#"),
            ("nats://u:hunter2@::1", "brackets"),
            ("nats://::1:4222", "brackets"),
            ("nats://[::1", "no ]"),
            ("nats://[one]:4222", "not an IPv6 address"),
            ("nats://nats://u:hunter2@h", "two schemes"),
            ("nats://u:hunter2@nats://h", "two schemes"),
            ("nats://u:hunter2@a,tls://b", "different schemes"),
            (" nats://u:hunter2@h", "white space"),
            ("nats://u:hunter2@h\n", "white space"),
            ("nats://u:hunter2@a h", "character"),
            ("nats://u:hunter2@h*", "character"),
            ("nats://u:hunter2@h?cred=x", "did you mean \"creds\"?"),
            ("nats://u:hunter2@h?jsdomain=x", "did you mean \"domain\"?"),
            ("nats://u:hunter2@h?deadline=5", "did you mean \"deadline_ms\"?"),
            ("\"nats://u:hunter2@h\"", "quotes"),
            ("SHIZUKU_KV_URL=nats://u:hunter2@h", "up to the ="),
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
            ("nats://u:hunter2@h?creds=x", "more than one kind"),
            ("nats://u:hunter2@h?name", "no value"),
            ("nats://u:hunter2@h?name=a&name=b", "twice"),
            ("nats://u:hunter2@h?deadline_ms=0", "milliseconds"),
            ("nats://u:hunter2@h?tls_cert=a", "need each other"),
            ("nats://u:hunter2@h?inbox_prefix=", "empty"),
            ("nats://u:hunter2@h?inbox_prefix=_INBOX_app.%3E", "wildcard"),
            ("nats://u:hunter2@h?inbox_prefix=$KV.b", "begin with $"),
            ("nats://u:hunter2%ff@h", "UTF-8"),
            ("nats://@h", "empty"),
            ("nats://u:1?hunter2=x@h", "%3F"),
            ("nats://u:1,hunter2@h", "%2C"),
            ("nats://u:hun,ter2:,x@h", "%2C"),
        ] {
            let reason = reason(url);
            assert!(reason.contains(needle), "{url}: {reason}");
            assert!(!reason.contains("hun") && !reason.contains("ter2"), "{reason}");
        }
    }

    /// The userinfo is not at fault in any of them.
    #[test]
    fn mistake_in_host_does_not_blame_userinfo() {
        for host in ["h:99999", "h:port", "a h", "h*", ":4222", "[::1", "a,b:0"] {
            for userinfo in ["", "u:p@", "token@"] {
                let reason = reason(&format!("nats://{userinfo}{host}"));
                let is_last = !userinfo.is_empty() && host.contains(',');
                assert_eq!(reason.contains("userinfo"), is_last, "{userinfo}{host}: {reason}");
            }
        }
    }

    #[test]
    fn server_address_is_normalized_or_rejected() {
        for (address, expected) in [
            ("one", "nats://one"),
            ("localhost:4222", "nats://localhost:4222"),
            ("NATS://one:4222/", "nats://one:4222"),
            ("TLS://[::1]:4222", "tls://[::1]:4222"),
        ] {
            assert_eq!(server(address).as_deref(), Ok(expected));
        }
        for (address, needle) in [
            ("", "host is missing"),
            ("u:hunter2@one", "userinfo"),
            ("http://one", "not nats or tls"),
            ("one,two", "several hosts"),
            ("nats://one?creds=x", "options"),
            ("nats://one/bucket", "path"),
            ("nats://nats://one", "two schemes"),
            ("::1", "brackets"),
            (" one", "white space"),
            ("one:port", "port"),
        ] {
            let reason = server(address).unwrap_err();
            assert!(reason.contains(needle) && !reason.contains("hunter2"), "{address}: {reason}");
        }
        assert!(is_tls("TLS://one") && !is_tls("nats://one") && !is_tls("one"));
    }
}
