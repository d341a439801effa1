//! Rules of the contract that the backends without a server share: `memory:` and `file:`.
//!
//! | file | idea |
//! |---|---|
//! | `admission.rs` | whether a write takes effect, and the error if it does not |
//! | `limits.rs` | which entries a store keeps, and for how long |
//! | `selector.rs` | a scope as ranges of keys |
//! | `settings.rs` | the settings and the identity of a new store |
//! | `turns.rs` | operations that never wait yield to other tasks |

mod admission;
mod limits;
mod selector;
mod settings;
mod turns;

pub(in crate::backend) use admission::{
    Newest, Rejection, TTL_GRANULARITY, admit, check_fences, check_settings,
};
pub(in crate::backend) use limits::Limits;
#[cfg(all(test, feature = "memory"))]
pub(in crate::backend) use limits::MARKER_TTL;
pub(in crate::backend) use selector::{Range, Selector};
pub(in crate::backend) use settings::{MAX_VALUE_SIZE, defaults, incarnation};
pub(in crate::backend) use turns::share;
#[cfg(feature = "memory")]
pub(in crate::backend) use turns::{poll_share, yield_once};
