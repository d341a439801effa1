//! The public connection: opening, health, shutdown.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions};
use futures_core::future::BoxFuture;
use tokio::time::Instant;

use super::config::{NatsAuth, NatsConnectionConfig, without_userinfo};
use super::credentials::{Source, read_file};
use super::delete_on_drop::delete_all;
use super::denials::check_inbox_prefix;
use super::first_answer;
use super::link::{Link, parse_version};
use super::link_events::LinkEvents;
use super::server_errors::{credentials_error, details_of};
use super::space::ApiSpace;
use super::store::NatsStore;
use super::{bucket, streams};
use crate::store::backoff;
use crate::store::timer::timeout_at;
use crate::store::{
    Connection, ConnectionCapabilities, Deadline, KvError, KvLimit, KvResult, KvStream, OpenStores,
    Store, StoreConfig, check_store_name, in_runtime,
};

const OPERATION: &str = "connect";

/// The oldest server that works: an older one answers in ways that the client library cannot read.
const OLDEST_SERVER: &str = "2.10";

/// The inbound channel of one subscription, in messages; what does not fit is lost. A watch asks
/// for far fewer at a time. The answers to all requests share one: as many callers would have to
/// wait at the same moment. Room that is not used costs nothing.
const SUBSCRIPTION_CAPACITY: usize = 1 << 20;

/// A connection to NATS, whose stores are JetStream key-value buckets.
///
/// Cheap to clone. A broken connection reconnects, for ever, with jittered exponential pauses;
/// until then operations wait for it up to their deadlines. It ends with
/// [`shutdown`](Connection::shutdown), when its last clone, store and watch are dropped, or with
/// the tokio runtime that opened it. Without that runtime every operation returns
/// [`KvError::NoRuntime`]. A program with several runtimes opens a connection in each, or keeps the
/// first for as long as the connection is used.
#[derive(Clone)]
pub struct NatsConnection {
    link: Arc<Link>,
    config: Arc<NatsConnectionConfig>,
    handles: Arc<OpenStores>,
}

/// Connects to NATS.
///
/// Tries each server once; whichever answers first in turn is used. Ends within
/// [`connect_timeout`](NatsConnectionConfig::connect_timeout()), with a server that accepts and
/// never answers too.
///
/// # Errors
/// [`KvError::InvalidConfig`] for settings that cannot work, unreadable files included;
/// [`KvError::Unavailable`] where no server can be reached or answers in time;
/// [`KvError::Unauthorized`] if the credentials are rejected, or if the user may not subscribe to
/// its [inboxes](NatsConnectionConfig::inbox_prefix()); [`KvError::ServerTooOld`] below 2.10;
/// [`KvError::NoRuntime`] outside of a tokio runtime.
///
/// Dropping the future is safe.
pub async fn nats_connect(config: NatsConnectionConfig) -> Result<NatsConnection, KvError> {
    in_runtime(OPERATION)?;
    let limit = config.connect_timeout;
    let addresses = addresses(&config);
    match tokio::time::timeout_at(Deadline::after(limit).instant(), open(config)).await {
        Ok(result) => result,
        Err(_) => Err(KvError::Unavailable {
            operation: OPERATION,
            reason: format!(
                "{addresses} did not answer within {limit:?}; check that this is the port for \
                 clients of a NATS server"
            ),
            source: None,
        }),
    }
}

async fn open(config: NatsConnectionConfig) -> KvResult<NatsConnection> {
    let invalid =
        |field, reason: &str| Err(KvError::InvalidConfig { field, reason: reason.to_owned() });
    if config.servers.is_empty() {
        return invalid("servers", "at least one is needed");
    }
    if config.connect_timeout.is_zero() || config.deadline.is_zero() {
        return invalid("connect_timeout and deadline", "must be more than zero");
    }
    let mut servers = Vec::new();
    for server in &config.servers {
        let server = super::url::server(server)
            .map_err(|reason| KvError::InvalidConfig { field: "servers", reason })?;
        servers.push(server.parse::<async_nats::ServerAddr>().map_err(|error| {
            KvError::InvalidConfig { field: "servers", reason: format!("{server:?}: {error}") }
        })?);
    }

    let space = ApiSpace::of(&config)?;
    if let Some(prefix) = &config.inbox_prefix
        && let Err(reason) = check_inbox_prefix(prefix)
    {
        return invalid("inbox_prefix", reason);
    }

    let events = LinkEvents::new();
    let options = connect_options(&config, events.clone()).await?;
    let client = options.connect(servers).await.map_err(|error| connect_error(&error, &config))?;
    let version = client.server_info().version;
    if parse_version(&version) < parse_version(OLDEST_SERVER) {
        return Err(KvError::ServerTooOld { found: version, needed: OLDEST_SERVER });
    }
    let link =
        Link::open(client, events.clone(), space).await.map_err(|error| KvError::Unavailable {
            operation: OPERATION,
            reason: "the connection ended at once".to_owned(),
            source: Some(Arc::new(error)),
        })?;
    first_answer::start(&link, events);
    link.first_answer(OPERATION).await?;
    Ok(NatsConnection { link, config: Arc::new(config), handles: Arc::default() })
}

async fn connect_options(
    config: &NatsConnectionConfig,
    events: LinkEvents,
) -> KvResult<ConnectOptions> {
    let mut options = match Source::of(&config.auth).map(Arc::new) {
        Some(source) => {
            source.check().await?;
            ConnectOptions::with_auth_callback(move |nonce| Arc::clone(&source).sign(nonce))
        }
        None => ConnectOptions::new(),
    };
    let (delays, attempts) = (events.clone(), events.clone());
    options = options
        // Each server gets its share, so that one that accepts and never answers does not use up
        // the time of all.
        .connection_timeout(
            config.connect_timeout / u32::try_from(config.servers.len()).unwrap_or(u32::MAX),
        )
        .request_timeout(None)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        // A half-dead connection is noticed after two of these.
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(move |attempts| {
            // Jittered, so that a fleet does not reconnect all at once. The client restarts its
            // count with each connection, also with one that the server ends at once.
            let pauses = backoff(Duration::from_millis(20), Duration::from_secs(2));
            pauses.take((attempts + delays.unanswered()).min(12)).last().unwrap_or_default()
        })
        // Chooses no server. Only this callback receives the reasons why attempts failed.
        .reconnect_to_server_callback(move |servers, _| {
            attempts.attempted(&servers);
            std::future::ready(None)
        })
        .event_callback(move |event| {
            events.on_event(&event);
            std::future::ready(())
        });
    if let Some(name) = &config.name {
        options = options.name(name);
    }
    if let Some(prefix) = &config.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    options = match &config.auth {
        NatsAuth::UserPassword { user, password } => {
            options.user_and_password(user.clone(), password.clone())
        }
        NatsAuth::Token(token) => options.token(token.clone()),
        // The other kinds sign in the callback.
        _ => options,
    };
    let tls = &config.tls;
    for (field, path) in [
        ("tls root certificates", tls.root_certificates.as_ref()),
        ("tls client certificate", tls.client_certificate.as_ref().map(|(chain, _)| chain)),
        ("tls client key", tls.client_certificate.as_ref().map(|(_, key)| key)),
    ] {
        if let Some(path) = path {
            // Read here only to name the file that is missing: the client library's error does not.
            read_file(field, path).await?;
        }
    }
    if let Some(pem) = &tls.root_certificates {
        options = options.add_root_certificates(pem.clone());
    }
    if let Some((chain, key)) = &tls.client_certificate {
        options = options.add_client_certificate(chain.clone(), key.clone());
    }
    if tls.required || config.servers.iter().any(|server| super::url::is_tls(server)) {
        options = options.require_tls(true);
    }
    if tls.first {
        options = options.tls_first();
    }
    Ok(options)
}

/// The servers, as they may be shown.
fn addresses(config: &NatsConnectionConfig) -> String {
    config.servers.iter().map(|server| without_userinfo(server)).collect::<Vec<_>>().join(", ")
}

fn connect_error(error: &async_nats::ConnectError, config: &NatsConnectionConfig) -> KvError {
    let addresses = addresses(config);
    let unavailable =
        |reason: String| KvError::Unavailable { operation: OPERATION, reason, source: None };
    let text = error.to_string().to_ascii_lowercase();
    for words in ["maximum connections exceeded", "maximum account active connections exceeded"] {
        if text.contains(words) {
            return KvError::LimitReached {
                operation: OPERATION,
                limit: KvLimit::Connections,
                reason: format!(
                    "{addresses} answered {words:?}; close other connections, or raise max_connections of the server or the \
                     account"
                ),
            };
        }
    }
    // The client library's errors are kept out of the source where they could quote an address.
    let text = error.to_string();
    // Credentials that have just expired arrive as an error of the stream.
    if let Some(rejection) = credentials_error(&text) {
        // The reason why a file could not be used is our own text.
        let reason = match text.split_once("failed signing nonce: ") {
            Some((_, ours)) => ours.to_owned(),
            None => rejected_credentials(&addresses, rejection, &config.auth),
        };
        return KvError::Unauthorized { operation: OPERATION, reason };
    }
    match error.kind() {
        ConnectErrorKind::Tls => unavailable(format!("no TLS connection to {addresses}: {error}")),
        // A handshake that fails arrives as an error of the stream.
        ConnectErrorKind::Io if is_about_tls(error) => unavailable(format!(
            "the TLS handshake with {addresses} failed (does it offer TLS, with a certificate of a root that is trusted here?): {error}"
        )),
        ConnectErrorKind::Dns => unavailable(format!("no address found for {addresses}: {error}")),
        _ => unavailable(format!(
            "no server answers at {addresses}: {error}; check that it runs, and that this is the \
             port for clients of a NATS server"
        )),
    }
}

/// Returns the reason and the way out after a server has rejected credentials of this kind.
fn rejected_credentials(addresses: &str, rejection: &str, auth: &NatsAuth) -> String {
    const ENCODE: &str = "in a URL, percent-encode characters other than letters and digits";
    let way_out = match auth {
        NatsAuth::None => {
            return format!(
                "{addresses} asks for credentials and none were given; write \
                 nats://USER:PASSWORD@HOST, ?creds= or ?nkey="
            );
        }
        NatsAuth::UserPassword { .. } => format!("check user and password; {ENCODE}"),
        NatsAuth::Token(_) => format!("check the token; {ENCODE}"),
        NatsAuth::NKey(_) | NatsAuth::NKeyFile(_) => {
            "check that the server lists the public key of this seed".to_owned()
        }
        _ => "check that the servers know the account of this user, and that its JWT is neither expired \
              nor revoked"
            .to_owned(),
    };
    format!("{addresses} rejected the credentials{}; {way_out}", details_of(rejection))
}

fn is_about_tls(error: &async_nats::ConnectError) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    ["certificate", "corrupt message", "handshake", "tls", "fatal alert", "unexpected message"]
        .iter()
        .any(|sign| text.contains(sign))
}

impl NatsConnection {
    /// The version of the server that the connection is to at the moment.
    pub fn server_version(&self) -> String {
        self.link.client().server_info().version
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.config.deadline)
    }

    async fn open_store(
        &self,
        operation: &'static str,
        name: &str,
        config: StoreConfig,
    ) -> KvResult<Store> {
        check_store_name(name)?;
        config.validate()?;
        let bucket = streams::open(&self.link, operation, name, &config, self.deadline()).await?;
        let deadline = config.operation_deadline();
        let store = NatsStore::new(Arc::clone(&self.link), bucket, config.consistency);
        let store = Store::new(Arc::new(store), deadline);
        self.handles.add(&store);
        Ok(store)
    }
}

impl fmt::Debug for NatsConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConnection").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Connection for NatsConnection {
    fn capabilities(&self) -> ConnectionCapabilities {
        bucket::capabilities(&self.link)
    }

    fn store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<Store>> {
        Box::pin(self.open_store("store", name, StoreConfig::new()))
    }

    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>> {
        Box::pin(self.open_store("store_with_config", name, config))
    }

    fn list_stores(&self) -> KvStream<String> {
        streams::list(Arc::clone(&self.link), self.config.deadline)
    }

    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>> {
        Box::pin(async move {
            check_store_name(name)?;
            streams::delete(&self.link, name, self.deadline()).await
        })
    }

    fn health(&self) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move {
            let (operation, deadline) = ("health", self.deadline());
            let answered = async {
                self.link.up(operation, deadline).await?;
                let flush = self.link.client().flush();
                // A flush only shows that bytes were written; an answer shows that the server
                // lives. Every user may send this
                // request.
                deadline
                    .bound(operation, None, async {
                        flush.await.map_err(|e| flush_error(operation, e))
                    })
                    .await?;
                streams::probe(&self.link, operation, deadline).await
            };
            answered.await.map_err(|error| {
                // Other operations return a retryable error, because credentials are read again at
                // each attempt to connect.
                let rejection = self
                    .link
                    .failure()
                    .filter(|failure| failure.is_about_credentials && error.is_retryable());
                rejection.map_or(error, |failure| failure.into_error(operation))
            })
        })
    }

    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move {
            let (operation, deadline) = ("shutdown", self.deadline());
            in_runtime(operation)?;
            // Half of the time is left for the flush.
            let released = self.handles.close(Deadline::after(deadline.limit() / 2)).await;
            let mark = self.link.mark(operation);
            if !self.link.begin_close() {
                let closed = async {
                    self.link.closed().await;
                    Ok(())
                };
                return deadline.bound(operation, None, closed).await;
            }
            // Also if this future is dropped before its end.
            let ends = CloseOnDrop(&self.link);
            if let Some(error) = self.link.over(operation) {
                // Unsent data is lost.
                return Err(error);
            }
            let client = self.link.client();
            let flushed = if self.link.is_connected() {
                let flush = async {
                    let deleted = async {
                        if let Ok(mark) = mark {
                            delete_all(&self.link, mark, deadline.remaining() / 2).await;
                        }
                    };
                    // Writes in flight receive their acknowledgements first.
                    tokio::join!(self.link.requests().writes_are_over(), deleted);
                    client.flush().await.map_err(|e| flush_error(operation, e))
                };
                deadline.bound(operation, None, flush).await
            } else {
                Err(KvError::Unavailable {
                    operation,
                    reason: "not connected, so that unsent data is lost".to_owned(),
                    source: None,
                })
            };
            drop(ends);
            // Ends the client's task. It fails only if the task has already ended.
            let _ = timeout_at(Instant::now() + deadline.limit(), client.drain()).await;
            flushed.and(released)
        })
    }
}

/// Ends the operations in flight.
struct CloseOnDrop<'a>(&'a Link);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn flush_error(operation: &'static str, error: async_nats::client::FlushError) -> KvError {
    KvError::Unavailable {
        operation,
        reason: "the connection could not be flushed".to_owned(),
        source: Some(Arc::new(error)),
    }
}
