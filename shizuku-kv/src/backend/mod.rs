//! The backends, one folder each, each behind a feature.

#[cfg(feature = "memory")]
pub(crate) mod memory;
#[cfg(feature = "nats")]
pub(crate) mod nats;
