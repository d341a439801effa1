//! TLS: trusted servers, presented certificates, and connections that require TLS.

use std::path::Path;

use shizuku_kv::{KvError, NatsConnectionConfig, NatsTls};
use shizuku_kv_tests::{NatsServer, TestCerts};

use super::{config, file, lets_in, rejected};

fn trusting(url: &str, ca: &Path) -> NatsConnectionConfig {
    config(&format!("{url}?tls_ca={}", ca.display()))
}

#[tokio::test]
async fn only_a_certificate_of_the_given_root_is_trusted() {
    let (certs, others) = (TestCerts::generate(), TestCerts::generate());
    let server = NatsServer::builder().tls(&certs.server().cert, &certs.server().key).start();
    assert!(server.url().starts_with("tls://"));
    lets_in(trusting(&server.url(), certs.ca())).await;
    lets_in(trusting(&format!("tls://localhost:{}", server.port()), certs.ca())).await;
    // A server that requires TLS gets it also from a client that does not.
    lets_in(trusting(&format!("nats://127.0.0.1:{}", server.port()), certs.ca())).await;
    lets_in(config(&server.url()).tls(NatsTls::new().required().root_certificates(certs.ca())))
        .await;

    for config in [config(&server.url()), trusting(&server.url(), others.ca())] {
        let error = rejected(config).await;
        assert!(
            matches!(&error, KvError::Unavailable { reason, .. } if reason.contains("TLS")),
            "{error:?}"
        );
        assert!(error.to_string().contains("certificate"), "{error}");
        assert!(error.to_string().contains(&server.port().to_string()), "{error}");
    }
}

#[tokio::test]
async fn client_certificate_is_presented_on_request() {
    let (certs, others) = (TestCerts::generate(), TestCerts::generate());
    let (cert, key) = (&certs.server().cert, &certs.server().key);
    let server = NatsServer::builder().tls(cert, key).tls_client_ca(certs.ca()).start();
    let with = |certs: &TestCerts, ca: &Path| {
        let (cert, key) = (certs.client().cert.display(), certs.client().key.display());
        config(&format!("{}?tls_ca={}&tls_cert={cert}&tls_key={key}", server.url(), ca.display()))
    };
    lets_in(with(&certs, certs.ca())).await;
    let tls = NatsTls::new().root_certificates(certs.ca());
    let tls = tls.client_certificate(&certs.client().cert, &certs.client().key);
    lets_in(config(&server.url()).tls(tls)).await;

    for config in [trusting(&server.url(), certs.ca()), with(&others, certs.ca())] {
        let error = rejected(config).await;
        assert!(
            matches!(error, KvError::Unavailable { .. } | KvError::Unauthorized { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(&server.port().to_string()), "{error}");
    }
}

#[tokio::test]
async fn tls_is_insisted_on_where_the_url_does() {
    let server = NatsServer::shared();
    let error = rejected(config(&format!("tls://app:hunter2@127.0.0.1:{}", server.port()))).await;
    assert!(
        matches!(&error, KvError::Unavailable { reason, .. } if reason.contains("TLS")),
        "{error:?}"
    );
    assert!(error.to_string().contains(&server.port().to_string()), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    let error = rejected(config(&server.url()).tls(NatsTls::new().required())).await;
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test]
async fn files_that_are_no_certificates_are_refused() {
    let certs = TestCerts::generate();
    let server = NatsServer::builder().tls(&certs.server().cert, &certs.server().key).start();
    let (_folder, rubbish) = file("rubbish.pem", "hunter2");
    let tls = || NatsTls::new().root_certificates(certs.ca());
    let (cert, key) = (&certs.client().cert, &certs.client().key);
    for tls in [
        NatsTls::new().root_certificates(&rubbish),
        tls().client_certificate(&rubbish, key),
        tls().client_certificate(cert, &rubbish),
        // Swaps the two files.
        tls().client_certificate(key, cert),
    ] {
        let shown = format!("{tls:?}");
        let error = rejected(config(&server.url()).tls(tls)).await;
        assert!(
            matches!(error, KvError::InvalidConfig { .. } | KvError::Unavailable { .. }),
            "{shown}: {error:?}"
        );
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}
