//! Faults between a store and its user (ADR 0089).
//!
//! [`FaultyStore`] wraps a store, and [`FaultyConnection`] a connection. Both turn each call of a
//! method into a [`Call`], and pass it to a [`Hook`]. The hook may make the call, change it, delay
//! it, or answer without it. The answer passes through the hook too, which can lose or change the
//! results of reads, scans and watches. [`Plan`] is a hook with rules that a test adds while the
//! store is in use:
//!
//! ```
//! # use std::sync::Arc;
//! # use shizuku_kv::{KvError, connect};
//! # use shizuku_kv_tests::faulty::{Fault, FaultyStore, On, Plan};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), KvError> {
//! let store = connect("memory:").await?.store("orders").await?;
//! let plan = Arc::new(Plan::default());
//! let faulty = FaultyStore::over(&store, &plan);
//!
//! let second = On::call("put").key("order.1").after(1).times(1);
//! plan.add(second, Fault::fail(KvError::unavailable("put", "no leader")));
//!
//! assert!(faulty.put("order.1", "new").await.is_ok());
//! assert!(faulty.put("order.1", "paid").await.is_err());
//! assert!(faulty.put("order.1", "paid").await.is_ok());
//! assert_eq!(plan.calls("put"), 3);
//! # Ok(())
//! # }
//! ```
//!
//! The module uses only the public interface of `shizuku_kv`, so that it can move there.

mod call;
mod connection;
mod plan;
mod store;
mod updates;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::{ConnectionCapabilities, KvResult};

pub use call::{Answer, Call, Next, Operation};
pub use connection::FaultyConnection;
pub use plan::{Fault, Gate, On, Plan};
pub use store::FaultyStore;
pub use updates::{Update, Updates, updates};

/// The function through which the calls of a [`FaultyStore`] or a [`FaultyConnection`] go.
pub trait Hook: Debug + Send + Sync + 'static {
    /// Answers a call. [`Next::call`] makes the call on the wrapped object.
    ///
    /// A store that is opened through a [`FaultyConnection`] has no faults unless the hook wraps
    /// the store in its answer.
    ///
    /// # Errors
    /// Returns the error for the caller.
    fn call(
        self: &Arc<Self>,
        call: Call,
        next: &Next,
    ) -> impl Future<Output = KvResult<Answer>> + Send {
        next.call(call)
    }

    /// Returns the abilities of the store, given those of the wrapped one.
    fn abilities(&self, abilities: Abilities) -> Abilities {
        abilities
    }

    /// Returns the capabilities of the connection, given those of the wrapped one.
    fn capabilities(&self, capabilities: ConnectionCapabilities) -> ConnectionCapabilities {
        capabilities
    }
}

/// The properties of a store that are known without a call.
#[derive(Clone, Debug)]
pub struct Abilities {
    /// The claimed capabilities.
    pub capabilities: ConnectionCapabilities,
    /// Maximum size of a value in bytes.
    pub max_value_size: usize,
    /// The incarnation, if it is known.
    pub incarnation: Option<[u8; 16]>,
    /// Whether the store can be written.
    pub writes: bool,
    /// Whether the store can be watched.
    pub watches: bool,
    /// Minimum time to live. `None` if the store has no times to live.
    pub granularity: Option<Duration>,
    /// Whether the store has fenced writes.
    pub fences: bool,
}

impl Abilities {
    /// Returns the abilities of the same store for reading only.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self {
            capabilities: ConnectionCapabilities::default(),
            writes: false,
            watches: false,
            granularity: None,
            fences: false,
            ..self
        }
    }
}

/// A hook whose stores can only be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnly;

impl Hook for ReadOnly {
    fn abilities(&self, abilities: Abilities) -> Abilities {
        abilities.read_only()
    }
}
