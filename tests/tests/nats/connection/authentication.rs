//! Credentials of every kind: the right ones are accepted, and all others are rejected without
//! being shown.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};
use shizuku_kv::{KvError, NatsAuth, NatsTls, connect};
use shizuku_kv_tests::{NatsServer, TestCerts, unique};

use super::{closed_port, config, file, lets_in, rejected, works};

/// Checks that an error reports rejected credentials, without showing them.
#[track_caller]
fn assert_unauthorized(error: &KvError) {
    assert!(matches!(error, KvError::Unauthorized { operation: "connect", .. }), "{error:?}");
    assert!(!error.is_retryable() && !format!("{error}{error:?}").contains("hunter2"), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("check ") || text.contains("none were given; write "), "{text}");
    assert!(
        !text.contains("authorization violation"),
        "says no more than that it is refused: {text}"
    );
}

#[tokio::test]
async fn right_password_is_accepted_and_no_other() {
    let server = NatsServer::builder()
        .user("app", "hunter2")
        .user("p@rt:ner", "hunter2:/?#[]@,%&= ü")
        .start();
    lets_in(config(&server.url_as("app:hunter2"))).await;
    lets_in(config(
        &server.url_as("p%40rt%3Aner:hunter2%3A%2F%3F%23%5B%5D%40%2C%25%26%3D%20%C3%BC"),
    ))
    .await;
    let auth = |user: &str, password: &str| {
        let auth = NatsAuth::UserPassword { user: user.to_owned(), password: password.to_owned() };
        config(&server.url()).auth(auth)
    };
    lets_in(auth("app", "hunter2")).await;
    lets_in(auth("p@rt:ner", "hunter2:/?#[]@,%&= ü")).await;

    let error = rejected(config(&server.url_as("app:hunter22"))).await.to_string();
    let way_out = "rejected the credentials; check user and password; in a URL, percent-encode";
    assert!(error.contains(way_out), "{error}");
    for config in [
        config(&server.url_as("app:hunter22")),
        config(&server.url_as("app:")),
        config(&server.url_as("nobody:hunter2")),
        config(&server.url_as("hunter2")),
        config(&server.url()),
        auth("app", "hunter22"),
        auth("app", ""),
    ] {
        assert_unauthorized(&rejected(config).await);
    }
}

#[tokio::test]
async fn right_token_is_accepted_and_no_other() {
    let server = NatsServer::builder().token("hunter2 @:/").start();
    lets_in(config(&server.url_as("hunter2%20%40%3A%2F"))).await;
    lets_in(config(&server.url()).auth(NatsAuth::Token("hunter2 @:/".to_owned()))).await;
    for config in [
        config(&server.url_as("hunter2")),
        config(&server.url_as("app:hunter2")),
        config(&server.url()),
        config(&server.url()).auth(NatsAuth::Token(String::new())),
    ] {
        assert_unauthorized(&rejected(config).await);
    }
}

#[tokio::test]
async fn right_nkey_is_accepted_and_no_other() {
    let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
    let (seed, other) = (key.seed().unwrap(), other.seed().unwrap());
    let server = NatsServer::builder().nkey(&key.public_key()).start();
    lets_in(config(&server.url()).auth(NatsAuth::NKey(seed.clone()))).await;
    lets_in(config(&server.url()).auth(NatsAuth::NKey(format!("{seed}\n")))).await;

    let (_folder, path) = file("app.nk", format!("  {seed}\n"));
    lets_in(config(&format!("{}?nkey={}", server.url(), path.display()))).await;
    lets_in(config(&server.url()).auth(NatsAuth::NKeyFile(path))).await;

    for config in [config(&server.url()).auth(NatsAuth::NKey(other)), config(&server.url())] {
        assert_unauthorized(&rejected(config).await);
    }
}

#[tokio::test]
async fn invalid_nkey_seed_is_rejected_without_being_shown() {
    let seed = KeyPair::new_user().seed().unwrap();
    let other = if &seed[30..31] == "A" { "B" } else { "A" };
    // Nothing is listening, because this error must not need a server.
    let url = format!("nats://127.0.0.1:{}", closed_port());
    for bad in [
        String::new(),
        "hunter2".to_owned(),
        KeyPair::new_user().public_key(),
        KeyPair::new_account().seed().unwrap(),
        seed[..40].to_owned(),
        format!("{}{}", &seed[..20], seed[20..].replace(&seed[30..31], other)),
        format!("SU{}", "A".repeat(56)),
        format!("SU{}", "1".repeat(56)),
    ] {
        let (_folder, path) = file("app.nk", &bad);
        for auth in [NatsAuth::NKey(bad.clone()), NatsAuth::NKeyFile(path)] {
            let error = rejected(config(&url).auth(auth)).await;
            assert!(
                matches!(error, KvError::InvalidConfig { field: "nkey", .. }),
                "{bad:?}: {error:?}"
            );
            assert!(bad.is_empty() || !format!("{error:?}").contains(&bad), "{error:?}");
        }
    }
}

/// Returns a JWT in the form of NATS: signed with an NKey, valid without end or until a second of
/// the epoch.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: &Value, end: Option<u64>) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut claims = json!({
        "jti": unique("jwt"), "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name,
        "sub": subject.public_key(), "nats": nats,
    });
    if let Some(end) = end {
        claims["exp"] = json!(end);
    }
    let signed =
        format!("{}.{}", encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// An operator with one account that may use JetStream, and the account that the server itself
/// needs for that.
pub(super) struct Operator {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

impl Operator {
    pub(super) fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
        }
    }

    pub(super) fn server(&self) -> NatsServer {
        let Self { operator, system, account } = self;
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1,
        });
        let mut jetstream = unlimited.clone();
        for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
            jetstream[limit] = json!(-1);
        }
        let of_operator = |account: &KeyPair, name: &str, limits: Value| {
            jwt(
                operator,
                account,
                name,
                &json!({ "type": "account", "version": 2, "limits": limits }),
                None,
            )
        };
        let trusted =
            jwt(operator, operator, "operator", &json!({ "type": "operator", "version": 2 }), None);
        let (system_id, account_id) = (system.public_key(), account.public_key());
        let system = of_operator(system, "system", unlimited);
        let account = of_operator(account, "tenant", jetstream);
        NatsServer::builder()
            .config(&format!(
                "operator: \"{trusted}\"\nsystem_account: {system_id}\nresolver: MEMORY"
            ))
            .config(&format!(
                "resolver_preload: {{ {system_id}: \"{system}\", {account_id}: \"{account}\" }}"
            ))
            .start()
    }

    /// Returns the content of a credentials file for a new user, with its seed and JWT.
    fn credentials(&self) -> Credentials {
        self.issue(None)
    }

    /// Returns credentials that expire at a second of the epoch.
    pub(super) fn expiring(&self, end: u64) -> Credentials {
        self.issue(Some(end))
    }

    fn issue(&self, end: Option<u64>) -> Credentials {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let jwt = jwt(&self.account, &user, "app", &claims, end);
        let seed = user.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        Credentials { text, jwt, seed }
    }
}

pub(super) struct Credentials {
    pub(super) text: String,
    pub(super) jwt: String,
    pub(super) seed: String,
}

#[tokio::test]
async fn credentials_of_a_file_of_text_and_of_base64_are_accepted() {
    let operator = Operator::new();
    let server = operator.server();
    let credentials = operator.credentials();
    let (_folder, path) = file("app @ 1.creds", &credentials.text);

    let escaped = path.display().to_string().replace(' ', "%20").replace('@', "%40");
    let connection = connect(&format!("{}?creds={escaped}", server.url())).await.unwrap();
    works(&*connection).await;
    lets_in(config(&server.url()).auth(NatsAuth::CredentialsFile(path))).await;
    lets_in(config(&server.url()).auth(NatsAuth::Credentials(credentials.text.clone()))).await;

    let encoded = STANDARD.encode(&credentials.text);
    let wrapped = encoded.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
    let wrapped = wrapped.collect::<Vec<_>>().join("\n");
    for encoded in [encoded.clone(), format!(" {wrapped}\r\n")] {
        lets_in(config(&server.url()).auth(NatsAuth::credentials_base64(&encoded).unwrap())).await;
    }

    // Another operator's user, another user's seed, and no credentials at all.
    let stranger = Operator::new().credentials();
    let mixed = credentials.text.replace(&credentials.seed, &stranger.seed);
    for auth in [NatsAuth::Credentials(stranger.text), NatsAuth::Credentials(mixed), NatsAuth::None]
    {
        let error = rejected(config(&server.url()).auth(auth)).await;
        assert_unauthorized(&error);
        assert!(!format!("{error:?}").contains(&stranger.seed), "{error:?}");
    }
}

#[tokio::test]
async fn invalid_credentials_are_rejected_without_being_shown() {
    let credentials = Operator::new().credentials();
    let url = format!("nats://127.0.0.1:{}", closed_port());
    for bad in [
        String::new(),
        "hunter2".to_owned(),
        credentials.jwt.clone(),
        credentials.seed.clone(),
        credentials.text[..credentials.text.len() / 2].to_owned(),
        credentials.text.replace(&credentials.seed, "hunter2"),
        credentials.text.replace(&credentials.seed, &format!("SU{}", "A".repeat(56))),
        STANDARD.encode(&credentials.text),
    ] {
        let (_folder, path) = file("app.creds", &bad);
        for auth in [NatsAuth::Credentials(bad.clone()), NatsAuth::CredentialsFile(path)] {
            let error = rejected(config(&url).auth(auth)).await;
            assert!(
                matches!(error, KvError::InvalidConfig { field: "credentials", .. }),
                "{bad:?}: {error:?}"
            );
            for secret in ["hunter2", &credentials.seed, &credentials.jwt] {
                assert!(!format!("{error:?}").contains(secret), "{error:?}");
            }
        }
    }
    for bad in ["hunter2!", "/w==", "a"] {
        let error = NatsAuth::credentials_base64(bad).unwrap_err();
        assert!(matches!(error, KvError::InvalidConfig { field: "credentials", .. }), "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn unreadable_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pem");
    let (certs, url) = (TestCerts::generate(), format!("nats://127.0.0.1:{}", closed_port()));
    let tls = NatsTls::new;
    for config in [
        config(&format!("{url}?creds={}", missing.display())),
        config(&format!("{url}?nkey={}", missing.display())),
        config(&format!("{url}?tls_ca={}", missing.display())),
        config(&format!(
            "{url}?tls_cert={}&tls_key={}",
            missing.display(),
            certs.client().key.display()
        )),
        config(&format!(
            "{url}?tls_cert={}&tls_key={}",
            certs.client().cert.display(),
            missing.display()
        )),
        config(&url).auth(NatsAuth::CredentialsFile(missing.clone())),
        config(&url).auth(NatsAuth::NKeyFile(missing.clone())),
        config(&url).tls(tls().root_certificates(&missing)),
        config(&url).tls(tls().client_certificate(&missing, &missing)),
    ] {
        let error = rejected(config).await;
        assert!(matches!(error, KvError::InvalidConfig { .. }), "{error:?}");
        assert!(error.to_string().contains(&missing.display().to_string()), "{error}");
        assert!(error.to_string().contains("No such file"), "{error}");
    }
    // A folder is not a file either.
    let error =
        rejected(config(&url).auth(NatsAuth::CredentialsFile(folder.path().to_owned()))).await;
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
}
