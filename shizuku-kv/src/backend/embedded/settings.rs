//! The settings and the identity of a new store.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::{StorageType, StoreConfig};

/// Default maximum size of a value: the default limit of a NATS server. A program therefore does
/// not notice the limit only in production. On NATS, 160 bytes of each message are reserved for
/// headers.
pub(in crate::backend) const MAX_VALUE_SIZE: usize = 1024 * 1024 - 160;

/// Returns the settings of a store for which none were set.
pub(in crate::backend) fn defaults() -> StoreConfig {
    StoreConfig::new()
        .description("")
        .history(1)
        .max_value_size(None)
        .max_bytes(None)
        .max_age(None)
        .key_ttl(false)
        .storage(StorageType::default())
        .replicas(1)
}

/// Returns bytes that no other store has, of this process or of any other.
///
/// The hasher of the standard library is keyed by the operating system's randomness. The count
/// makes the bytes of one process different however that key is made.
pub(in crate::backend) fn incarnation() -> [u8; 16] {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new();
    let (high, low) = (random.hash_one((made, 0_u8)), random.hash_one((made, 1_u8)));
    ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
}
