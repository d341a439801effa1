//! The settings of a test server, and its configuration file.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::NatsServer;
use crate::server::Ports;

/// Describes a [`NatsServer`] before it starts. Unset settings have the server's defaults.
#[derive(Debug, Clone)]
#[must_use = "nothing starts before `start`"]
pub struct NatsServerBuilder {
    jetstream: bool,
    port: Option<u16>,
    max_payload: Option<usize>,
    token: Option<String>,
    users: Vec<String>,
    tls: Option<(PathBuf, PathBuf)>,
    client_ca: Option<PathBuf>,
    cluster: Option<ClusterMember>,
    extra: String,
    jetstream_extra: String,
}

/// A server as a member of a [`NatsCluster`](crate::NatsCluster).
#[derive(Debug, Clone)]
pub(crate) struct ClusterMember {
    /// Name of the cluster, the same on each of its servers.
    pub(crate) cluster: String,
    /// Name of this server, different on each.
    pub(crate) server: String,
    /// Ports on which this server reaches the others.
    pub(crate) routes: Vec<u16>,
    /// Port that it announces to the others.
    pub(crate) advertised: u16,
}

impl NatsServerBuilder {
    pub(crate) fn new() -> Self {
        Self {
            jetstream: true,
            port: None,
            max_payload: None,
            token: None,
            users: Vec::new(),
            tls: None,
            client_ca: None,
            cluster: None,
            extra: String::new(),
            jetstream_extra: String::new(),
        }
    }

    /// Turns JetStream on or off. It is on by default.
    pub fn jetstream(mut self, on: bool) -> Self {
        self.jetstream = on;
        self
    }

    /// Sets the port to listen on, instead of a free one. If another process listens there, the
    /// start is retried until the deadline.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Sets the maximum size of a message in bytes.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = Some(bytes);
        self
    }

    /// Accepts a client with this user name and password. May be called more than once.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push(format!("{{ user: {}, password: {} }}", quoted(name), quoted(password)));
        self
    }

    /// Accepts a client that signs with the seed of this public user key (`U…`). May be called more
    /// than once.
    pub fn nkey(mut self, public_key: &str) -> Self {
        self.users.push(format!("{{ nkey: {} }}", quoted(public_key)));
        self
    }

    /// Accepts a client with this token. The server allows either a token or users.
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Requires TLS, with the server's certificate chain and key in these PEM files.
    pub fn tls(mut self, cert: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.tls = Some((cert.as_ref().into(), key.as_ref().into()));
        self
    }

    /// Requires a client certificate signed by this CA, together with [`tls`](Self::tls).
    pub fn tls_client_ca(mut self, ca: impl AsRef<Path>) -> Self {
        self.client_ca = Some(ca.as_ref().into());
        self
    }

    /// Appends text to the configuration file, on a line of its own. May be called more than once.
    ///
    /// Use it for settings without a method of their own: accounts and permissions, an operator
    /// with a resolver, limits of JetStream. The harness reads the server's greeting before TLS and
    /// authentication, so neither prevents it from finding the server ready.
    pub fn config(mut self, text: &str) -> Self {
        self.extra.push_str(text);
        self.extra.push('\n');
        self
    }

    /// Replaces the text that [`config`](Self::config) has appended.
    pub fn only_config(mut self, text: &str) -> Self {
        self.extra.clear();
        self.config(text)
    }

    /// Appends text to the `jetstream` block of the configuration file, for example limits of the
    /// server. May be called more than once.
    pub fn jetstream_config(mut self, text: &str) -> Self {
        self.jetstream_extra.push_str(text);
        self.jetstream_extra.push('\n');
        self
    }

    pub(crate) fn cluster(mut self, member: ClusterMember) -> Self {
        self.cluster = Some(member);
        self
    }

    /// Starts the server and returns when it accepts connections and JetStream is up.
    ///
    /// # Panics
    ///
    /// If no `nats-server` binary is found, or the server is not ready in 20 seconds or ends before
    /// it is. The message then has the end of the server's log.
    pub fn start(self) -> NatsServer {
        NatsServer::start_with(self)
    }

    pub(crate) fn has_jetstream(&self) -> bool {
        self.jetstream
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn is_clustered(&self) -> bool {
        self.cluster.is_some()
    }

    pub(crate) fn fixed_port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the configuration file's text. If `ports` has a 0, the server picks a free port
    /// itself, which no other process can take between the choice and the use.
    pub(crate) fn render(&self, ports: Ports, store_dir: &Path, ports_dir: &Path) -> String {
        let mut text = format!(
            "host: 127.0.0.1\nport: {}\nports_file_dir: {}\nhttp: \"127.0.0.1:-1\"\n",
            or_free(ports.client),
            quoted_path(ports_dir)
        );
        if let Some(member) = &self.cluster {
            let (name, server) = (quoted(&member.cluster), quoted(&member.server));
            let routes: Vec<_> = member
                .routes
                .iter()
                .map(|port| format!("\"nats-route://127.0.0.1:{port}\""))
                .collect();
            // Neither clients nor servers may learn a way around the harness. `no_advertise`
            // affects only clients, and servers announce the addresses of others in any case.
            let _ = writeln!(
                text,
                "server_name: {server}\ncluster {{ name: {name}, host: 127.0.0.1, port: {}, no_advertise: true, \
                 advertise: \"127.0.0.1:{}\", routes: [ {} ] }}",
                or_free(ports.routes),
                member.advertised,
                routes.join(", ")
            );
        }
        if self.jetstream {
            let store_dir = quoted_path(store_dir);
            let _ =
                writeln!(text, "jetstream {{\nstore_dir: {store_dir}\n{} }}", self.jetstream_extra);
        }
        if let Some(bytes) = self.max_payload {
            let _ = writeln!(text, "max_payload: {bytes}");
        }
        // Both timeouts are 2 seconds by default, which is short for a busy machine.
        if let Some(token) = &self.token {
            let token = quoted(token);
            let _ = writeln!(text, "authorization {{ timeout: 10, token: {token} }}");
        }
        if !self.users.is_empty() {
            let users = self.users.join(", ");
            let _ = writeln!(text, "authorization {{ timeout: 10, users: [ {users} ] }}");
        }
        if let Some((cert, key)) = &self.tls {
            let (cert, key) = (quoted_path(cert), quoted_path(key));
            let _ = write!(text, "tls {{ timeout: 10, cert_file: {cert}, key_file: {key}");
            if let Some(ca) = &self.client_ca {
                let _ = write!(text, ", verify: true, ca_file: {}", quoted_path(ca));
            }
            text.push_str(" }\n");
        }
        text.push_str(&self.extra);
        text
    }
}

/// Converts a port for the configuration file, in which 0 is the default port and -1 a free one.
fn or_free(port: u16) -> i32 {
    if port == 0 { -1 } else { port.into() }
}

fn quoted_path(path: &Path) -> String {
    quoted(path.to_str().expect("a path in UTF-8"))
}

/// Quotes a string of the server's configuration language. Quotes also keep `$` from naming a
/// variable.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
