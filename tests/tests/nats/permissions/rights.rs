//! Servers whose user `app` has a list of rights, and the expected content of its errors.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use shizuku_kv::{
    Connection, KvError, KvResult, NatsConnection, NatsConnectionConfig, StoreConfig, nats_connect,
};
use shizuku_kv_tests::{NatsServer, NatsServerBuilder};

use crate::opening::leaf::DOMAIN;

/// Deadline of operations that have to end long before it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Maximum time for operations that have to end at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(15);

/// Awaits a future that has to end long before its deadline.
pub(crate) async fn at_once<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(AT_ONCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not end within {AT_ONCE:?}"))
}

/// The rights of the user `app`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rights {
    publish: Vec<String>,
    deny_publish: Vec<String>,
    subscribe: Option<Vec<String>>,
    more: String,
}

impl Rights {
    /// Rights to publish to these subjects, and to subscribe to all.
    pub(crate) fn publish<S: Into<String>>(subjects: impl IntoIterator<Item = S>) -> Self {
        Self { publish: subjects.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Rights to do everything except publish to these subjects.
    pub(crate) fn all_but<S: Into<String>>(subjects: impl IntoIterator<Item = S>) -> Self {
        let deny_publish = subjects.into_iter().map(Into::into).collect();
        Self { publish: vec![">".to_owned()], deny_publish, ..Self::default() }
    }

    /// The same, with subscriptions to these subjects only.
    pub(crate) fn subscribe<S: Into<String>>(self, subjects: impl IntoIterator<Item = S>) -> Self {
        Self { subscribe: Some(subjects.into_iter().map(Into::into).collect()), ..self }
    }

    /// The same with another setting of the user's permissions.
    pub(crate) fn and(self, more: &str) -> Self {
        Self { more: format!("{}, {more}", self.more), ..self }
    }

    /// Returns the users of a server: `admin` without limits, and `app` with these rights.
    pub(crate) fn users(&self) -> String {
        let Self { publish, deny_publish, subscribe, more } = self;
        // An empty list would allow everything.
        let nothing = vec!["nothing".to_owned()];
        let subscribe = subscribe.as_ref().map_or_else(String::new, |subjects| {
            let subjects = if subjects.is_empty() { &nothing } else { subjects };
            format!(", subscribe: {{ allow: {subjects:?} }}")
        });
        format!(
            "users: [ {{ user: admin, password: hunter2 }}, {{ user: app, password: hunter2, permissions: {{ \
             publish: {{ allow: {publish:?}, deny: {deny_publish:?} }}{subscribe}{more} }} }} ]"
        )
    }

    /// Returns the same as a section of a configuration.
    pub(crate) fn section(&self) -> String {
        format!("authorization {{ timeout: 10, {} }}", self.users())
    }

    pub(crate) fn builder(&self) -> NatsServerBuilder {
        NatsServer::builder().config(&self.section())
    }

    pub(crate) fn start(&self) -> NatsServer {
        self.builder().start()
    }
}

/// The JetStream of a server, as a user reaches it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reach {
    Own,
    /// Reached by the name of the server's domain.
    Domain,
}

impl Reach {
    pub(crate) fn start(self, rights: &Rights) -> NatsServer {
        match self {
            Self::Own => rights.start(),
            Self::Domain => rights.builder().jetstream_config(&format!("domain: {DOMAIN}")).start(),
        }
    }

    /// Returns configurations of the administrator and the user `app`.
    pub(crate) fn configs(self, server: &NatsServer) -> [NatsConnectionConfig; 2] {
        ["admin", "app"].map(|user| match self {
            Self::Own => config_of(server, user),
            Self::Domain => config_of(server, user).domain(DOMAIN),
        })
    }
}

/// Returns a configuration for one of the users.
pub(crate) fn config_of(server: &NatsServer, user: &str) -> NatsConnectionConfig {
    let url = server.url_as(&format!("{user}:hunter2"));
    NatsConnectionConfig::from_url(&url).unwrap().deadline(PATIENCE).connect_timeout(PATIENCE)
}

pub(crate) async fn connect_as(server: &NatsServer, user: &str) -> NatsConnection {
    nats_connect(config_of(server, user)).await.unwrap()
}

/// Returns a store that the administrator creates, opened as the user `app`.
pub(crate) async fn open(
    server: &NatsServer,
    name: &str,
) -> (shizuku_kv::Store, shizuku_kv::Store) {
    let config = || StoreConfig::new().deadline(PATIENCE);
    let admin = connect_as(server, "admin").await.store_with_config(name, config()).await.unwrap();
    let app = connect_as(server, "app").await.store_with_config(name, config()).await.unwrap();
    (admin, app)
}

/// Checks that a call is rejected at once with an error that names the missing right.
pub(crate) async fn is_refused<T: Debug>(
    right: &str,
    what: &str,
    call: impl Future<Output = KvResult<T>>,
) {
    assert_names(&at_once(what, call).await.expect_err(what), right);
}

/// Checks that an error names the missing right.
#[track_caller]
pub(crate) fn assert_names(error: &KvError, right: &str) {
    assert!(matches!(error, KvError::Unauthorized { .. }), "{right}: {error:?}");
    assert!(error.to_string().contains(&format!("{right:?}")), "{right}: {error}");
    assert!(!error.is_retryable() && !format!("{error:?}").contains("hunter2"), "{error:?}");
}
