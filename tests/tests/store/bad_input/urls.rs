//! URLs, and the environment variable with a URL.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use shizuku_kv::{KvError, URL_VARIABLE, connect, connect_from_env};
use shizuku_kv_tests::{NatsServer, rerun};

use super::{SECRET, shown};

#[tokio::test]
async fn unknown_scheme_error_lists_the_known_ones() {
    for url in [
        "http://app:hunter2@host",
        "https://app:hunter2@host:4222/bucket",
        "redis://:hunter2@host:6379/0",
        "postgres://app:hunter2@host/db?password=hunter2",
        "mem://",
        "jetstream://hunter2@host",
        "NATS//host",
        "nats//app:hunter2@host",
        "app:hunter2@host:4222",
        "host:4222",
        "localhost",
        "",
        " ",
        ":",
        "://",
        "//app:hunter2@host",
        "://app:hunter2@host",
    ] {
        let error = connect(url).await.unwrap_err();
        assert!(
            matches!(error, KvError::InvalidUrl { .. } | KvError::Unsupported { .. }),
            "{url:?}: {error:?}"
        );
        let text = error.to_string();
        for known in ["memory:", "file:", "nats://", "tls://"] {
            assert!(text.contains(known), "{known} is not in the error for {url:?}: {text}");
        }
        assert!(!shown(&error).contains(SECRET), "{url:?}: {error:?}");
        assert!(!error.is_retryable(), "{url:?}: {error:?}");
    }
}

#[tokio::test]
async fn unknown_scheme_is_shown_only_if_it_looks_like_one() {
    for url in [
        "hunter2@nats://host",
        "app:hunter2@nats://host",
        "nats hunter2://host",
        "hunter2=//host",
        "ä://hunter2@host",
    ] {
        let error = connect(url).await.unwrap_err();
        assert!(
            error.to_string().contains("known are memory:, file:, nats://, tls://"),
            "{url:?}: {error:?}"
        );
        assert!(!shown(&error).contains(SECRET), "{url:?}: {error:?}");
    }
}

/// The parser of NATS URLs has a table of its own.
#[tokio::test]
async fn malformed_url_names_the_fault() {
    for (url, reason) in [
        ("memory:x", "nothing may follow"),
        ("memory://", "nothing may follow"),
        ("memory://app:hunter2@host", "nothing may follow"),
        ("memory:?hunter2", "nothing may follow"),
        ("nats:", "nats://HOST:PORT"),
        ("nats:host", "nats://HOST:PORT"),
        ("nats:/app:hunter2@host", "nats://HOST:PORT"),
        ("tls:app:hunter2@host", "nats://HOST:PORT"),
        ("nats://", "host is missing"),
        ("tls://", "host is missing"),
        ("nats:///", "host is missing"),
        ("nats://:4222", "host is missing"),
        ("nats://app:hunter2@:4222", "host is missing"),
        ("nats://app:hunter2@one,,two", "host is missing"),
        ("nats://app:hunter2@one,", "host is missing"),
        ("nats://app:hunter2@host:0", "port"),
        ("nats://app:hunter2@host:-1", "port"),
        ("nats://app:hunter2@host:", "port"),
        ("", "it is empty"),
        (" ", "it is empty"),
        ("\"nats://app:hunter2@host\"", "it stands in quotes; remove them"),
        ("'nats://app:hunter2@host'", "it stands in quotes; remove them"),
        ("<tls://app:hunter2@host>", "it stands in quotes; remove them"),
        ("\"memory:\"", "it stands in quotes; remove them"),
        ("SHIZUKU_KV_URL=nats://app:hunter2@host", "remove everything up to the ="),
        ("export URL=\"tls://app:hunter2@host\"", "remove everything up to the ="),
        ("url=memory:", "remove everything up to the ="),
        ("localhost:4222", "nats://localhost:4222"),
        ("localhost", "nats://localhost"),
        ("127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("[::1]:4222", "nats://[::1]:4222"),
        ("nats.example.com:4222", "nats://nats.example.com:4222"),
        ("nats:4222", "nats://HOST:PORT"),
        ("host:4222", "nats://HOST:PORT"),
        ("nats://app:hunter2@host?deadline_ms=soon", "milliseconds"),
        ("nats://app:hunter2@host?connect_timeout_ms=-1", "milliseconds"),
        ("nats://app:hunter2@host?tls_first=yes", "true or false"),
    ] {
        let error = connect(url).await.unwrap_err();
        assert!(matches!(error, KvError::InvalidUrl { .. }), "{url:?}: {error:?}");
        assert!(error.to_string().contains(reason), "{url:?}: {error}");
        assert!(!shown(&error).contains(SECRET), "{url:?}: {error:?}");
        assert!(!error.is_retryable(), "{url:?}: {error:?}");
    }
}

/// Set for a test of this file that runs again, in a process of its own, with the environment under
/// test.
const CHILD: &str = "SHIZUKU_BAD_INPUT_CHILD";

/// Returns the output of `connect_from_env` in a process with this value of its variable.
fn from_env(value: Option<&OsStr>) -> String {
    let mut command = rerun(module_path!(), "variable_is_read_and_its_faults_are_named");
    command.env(CHILD, "1");
    match value {
        Some(value) => command.env(URL_VARIABLE, value),
        None => command.env_remove(URL_VARIABLE),
    };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (_, after) = text.split_once("from the environment: ").unwrap_or_else(|| panic!("{text}"));
    after.lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn variable_is_read_and_its_faults_are_named() {
    if std::env::var_os(CHILD).is_some() {
        match connect_from_env().await {
            Ok(connection) => println!("from the environment: {connection:?}"),
            Err(error) => println!("from the environment: {error} / {error:?}"),
        }
        return;
    }
    assert_eq!(URL_VARIABLE, "SHIZUKU_KV_URL");
    assert!(from_env(Some("memory:".as_ref())).contains("MemoryConnection"));
    let server = NatsServer::shared();
    assert!(from_env(Some(server.url().as_ref())).contains("NatsConnection"));

    let unset = from_env(None);
    assert!(unset.contains("SHIZUKU_KV_URL is not set") && unset.contains("InvalidUrl"), "{unset}");
    for empty in ["", " "] {
        let text = from_env(Some(empty.as_ref()));
        assert!(
            text.contains("SHIZUKU_KV_URL is empty; set it to memory:, file:PATH or nats://"),
            "{text}"
        );
    }
    for url in ["redis://app:hunter2@host", "app:hunter2@host"] {
        let refused = from_env(Some(url.as_ref()));
        assert!(
            refused.contains("known are memory:, file:, nats://, tls://"),
            "{url:?}: {refused}"
        );
        assert!(!refused.contains(SECRET), "{refused}");
    }
}

#[test]
fn variable_that_is_not_text_is_not_called_unset() {
    let no_text = from_env(Some(&OsString::from_vec(b"nats://app:hunter2\xff@host".to_vec())));
    assert!(no_text.contains("SHIZUKU_KV_URL") && !no_text.contains("not set"), "{no_text}");
    assert!(!no_text.contains(SECRET), "{no_text}");
}
