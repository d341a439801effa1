//! The service, whose configuration changes while it runs.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};
use shizuku_kv::{
    Live, LiveSnapshot, LiveStatic, LiveStatus, LiveSyncState, Store, VersionToken, WatchLink,
};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::{Outcome, ServiceConfig};

/// The shared state of the handlers.
struct Service {
    config: Live<ServiceConfig>,
    pool: Pool,
}

/// Serves until `ended`, and finishes the requests in progress.
pub(crate) async fn serve(
    store: &Store,
    listener: TcpListener,
    ended: impl Future<Output = ()> + Send + 'static,
) -> Outcome {
    // A service that needs a first value would wait for it with `live`.
    let config = ServiceConfig::live_or_default(store).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let pool = Pool::new(config.load().pool_size);
    let service = Arc::new(Service { config: config.clone(), pool });
    // Uses the handle from before the pool, so that no change is missed between the two.
    let follower = tokio::spawn(follow(config, Arc::clone(&service)));
    let routes = Router::new()
        .route("/", get(config_in_force))
        .route("/config", get(config_in_force))
        .route("/status", get(status))
        .route("/feature/{name}", get(feature))
        .route("/job", get(job))
        .with_state(service);
    let served = axum::serve(listener, routes).with_graceful_shutdown(ended).await;
    follower.abort();
    println!("stopped");
    Ok(served?)
}

/// Resizes the pool after each change, and prints it.
async fn follow(mut config: Live<ServiceConfig>, service: Arc<Service>) {
    let statuses = config.statuses();
    println!("pool: {} ({})", service.pool.size(), named(config.version()));
    let mut told = SyncState::from(config.status());
    println!("status: {told}; {} is in force", named(config.version()));
    loop {
        tokio::select! {
            biased;
            changed = config.changed() => {
                // Fails only if the connection was shut down.
                let Ok(new) = changed else { return };
                let (old, size) = (service.pool.size(), new.pool_size);
                let version = named(LiveSnapshot::version(&new));
                println!("pool: {old} -> {size}, features: {} ({version})", new.features());
                service.pool.resize(size);
            }
            Some(status) = statuses.next() => {
                let sync_state = SyncState::from(status);
                if sync_state != told {
                    println!("status: {sync_state}; {} is in force", named(config.version()));
                    told = sync_state;
                }
            }
        }
    }
}

async fn config_in_force(State(service): State<Arc<Service>>) -> Json<Value> {
    // One snapshot, so that the version belongs to the value.
    let config = service.config.snapshot();
    Json(json!({
        "pool_size": config.pool_size,
        "features": config.features,
        "version": LiveSnapshot::version(&config).map(|version| version.to_string()),
        "pool": { "size": service.pool.size(), "free": service.pool.places.available_permits() },
    }))
}

/// Always returns 200, because with the last good value the service is as healthy as before.
async fn status(State(service): State<Arc<Service>>) -> Json<Value> {
    let version = service.config.version().map(|version| version.to_string());
    Json(json!({ "in_force": version, "status": SyncState::from(service.config.status()) }))
}

async fn feature(State(service): State<Arc<Service>>, Path(name): Path<String>) -> &'static str {
    // Loads the current value for each request, at the cost of an atomic load.
    if service.config.load().features.contains(&name) { "on\n" } else { "off\n" }
}

/// A job that needs a permit of the pool.
async fn job(State(service): State<Arc<Service>>) -> (StatusCode, &'static str) {
    let Ok(_place) = service.pool.places.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "all places are taken\n");
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    (StatusCode::OK, "done\n")
}

/// A limit on concurrent jobs that can change.
struct Pool {
    places: Arc<Semaphore>,
    size: AtomicU32,
}

impl Pool {
    fn new(size: u32) -> Self {
        Self { places: Arc::new(Semaphore::new(size as usize)), size: AtomicU32::new(size) }
    }

    fn size(&self) -> u32 {
        self.size.load(Ordering::Relaxed)
    }

    fn resize(&self, size: u32) {
        let old = self.size.swap(size, Ordering::Relaxed);
        self.places.add_permits(size.saturating_sub(old) as usize);
        // A running job keeps its permit until it is done. The surplus takes permits as they are
        // released, because nothing else waits for them.
        let surplus = Arc::clone(&self.places).acquire_many_owned(old.saturating_sub(size));
        tokio::spawn(async { surplus.await.map(|places| places.forget()) });
    }
}

/// The relation of the current value to the store, as the service reports it.
#[derive(PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum SyncState {
    Current,
    /// The store has not been heard since then, in seconds of Unix time.
    Stale {
        since: u64,
        why: String,
    },
    Rejected {
        version: String,
        why: String,
    },
    Absent,
    Unknown,
    Ended,
}

impl From<LiveStatus> for SyncState {
    fn from(status: LiveStatus) -> Self {
        match (status.sync_state, status.link) {
            (LiveSyncState::Ended { .. }, _) => Self::Ended,
            // This comes first, because everything else may be outdated.
            (_, WatchLink::Down { since, reason, .. }) => {
                let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                Self::Stale { since, why: reason.to_string() }
            }
            // The error names the type, the key and the fault, but not the value, so it is safe to
            // show.
            (LiveSyncState::Rejected { version, error, .. }, _) => {
                Self::Rejected { version: version.to_string(), why: error.to_string() }
            }
            (LiveSyncState::Current, _) => Self::Current,
            (LiveSyncState::Absent { .. }, _) => Self::Absent,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("current"),
            Self::Stale { why, .. } => write!(f, "stale, the store is not heard from: {why}"),
            Self::Rejected { why, .. } => write!(f, "rejected: {why}"),
            Self::Absent => f.write_str("absent"),
            Self::Unknown => f.write_str("unknown"),
            Self::Ended => f.write_str("ended"),
        }
    }
}

fn named(version: Option<VersionToken>) -> String {
    version.map_or_else(|| "the default".to_owned(), |version| format!("version {version}"))
}

/// Completes on Ctrl-C, and on Unix on SIGTERM too.
pub(crate) fn told_to_end() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    #[cfg(unix)]
    let terminated = async move { terminate.recv().await };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    Ok(async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated => {}
        }
    })
}
