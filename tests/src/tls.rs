//! Certificates for one test.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// A certificate authority made for the test, with a server's and a client's certificate signed by
/// it, as PEM files that are removed when this is dropped.
#[derive(Debug)]
pub struct TestCerts {
    ca: PathBuf,
    server: Identity,
    client: Identity,
    _files: TempDir,
}

/// The PEM files of a certificate and its private key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key, in PKCS #8.
    pub key: PathBuf,
}

impl TestCerts {
    /// Makes all three. The server's certificate is valid for `localhost` and `127.0.0.1`.
    ///
    /// # Panics
    ///
    /// If the files cannot be written.
    pub fn generate() -> Self {
        let files = tempfile::Builder::new()
            .prefix("shizuku-kv-certs-")
            .tempdir()
            .expect("a temporary directory");

        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "shizuku-kv test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key pair");
        let certificate = params.self_signed(&key).expect("a self-signed certificate");
        let ca = write(files.path(), "ca.pem", &certificate.pem());
        let issuer = Issuer::new(params, key);

        let server = issue(
            files.path(),
            "server",
            &["localhost", "127.0.0.1"],
            ExtendedKeyUsagePurpose::ServerAuth,
            &issuer,
        );
        let client =
            issue(files.path(), "client", &[], ExtendedKeyUsagePurpose::ClientAuth, &issuer);
        Self { ca, server, client, _files: files }
    }

    /// Returns the PEM file of the authority's certificate.
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// Returns the server's files, for [`NatsServerBuilder::tls`](crate::NatsServerBuilder::tls).
    pub fn server(&self) -> &Identity {
        &self.server
    }

    /// Returns the client's files.
    pub fn client(&self) -> &Identity {
        &self.client
    }
}

fn issue(
    folder: &Path,
    name: &str,
    hosts: &[&str],
    usage: ExtendedKeyUsagePurpose,
    issuer: &Issuer<'_, KeyPair>,
) -> Identity {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("valid host names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().expect("a key pair");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    Identity {
        cert: write(folder, &format!("{name}.pem"), &certificate.pem()),
        key: write(folder, &format!("{name}-key.pem"), &key.serialize_pem()),
    }
}

fn write(folder: &Path, name: &str, pem: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, pem).expect("write a PEM file");
    path
}
