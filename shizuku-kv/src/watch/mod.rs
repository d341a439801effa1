//! Following a store beyond the life of one watch.
//!
//! [`Follower`] reopens a watch after each loss (ADR 0084). `shared/` lets many watches of a store
//! share a few watches of the backend (ADR 0025). [`UnverifiedPosition`] detects a
//! store that was restored from an older copy, and [`Pulse`] shows that the tasks of followers run.

mod follower;
mod pulse;
mod shared;
mod unverified;

pub(crate) use follower::{Event, Follower};
pub(crate) use pulse::Pulse;
pub(crate) use shared::{KeyComparison, Start, Upkeep, shared_watch, upkeep};
pub(crate) use unverified::{NewestHeld, Recent, UnverifiedPosition, Verification};
