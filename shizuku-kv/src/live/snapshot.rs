//! The current value of a live value or of a key of a live map, with its version.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::Guard;

use super::panics::LastOwned;
use crate::store::VersionToken;

/// A current or earlier value, with its version.
///
/// A snapshot dereferences to the value, and has no public fields or methods. Its functions are
/// called by their path, like those of `Rc`, so that no function hides a name of the value.
///
/// A panic of the value's `Drop` is caught and logged, so that it does not end the task that
/// follows the store.
#[derive(Clone, PartialEq, Eq)]
pub struct LiveSnapshot<T> {
    pub(super) value: LastOwned<T>,
    pub(super) version: Option<VersionToken>,
    pub(super) created: Option<SystemTime>,
    /// Number of the value, which increases with each current value.
    pub(super) generation: u64,
}

impl<T> LiveSnapshot<T> {
    /// Returns the value.
    pub fn value(this: &Self) -> &T {
        &this.value
    }

    /// Returns the version of the value. Returns `None` for a default, and for an absent value in a
    /// `Live<Option<T>>`.
    pub fn version(this: &Self) -> Option<VersionToken> {
        this.version
    }

    /// Returns the time at which the store accepted the value, by the store's clock. Returns `None`
    /// if the value has no version.
    pub fn created(this: &Self) -> Option<SystemTime> {
        this.created
    }

    /// Creates a value that is not from the store.
    pub(super) fn unversioned(value: T) -> Self {
        Self { value: LastOwned::new(value), version: None, created: None, generation: 0 }
    }

    /// Creates a value of the store.
    pub(super) fn of(value: T, version: VersionToken, created: SystemTime) -> Self {
        Self {
            value: LastOwned::new(value),
            version: Some(version),
            created: Some(created),
            generation: 0,
        }
    }
}

impl<T> Deref for LiveSnapshot<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Shows the version, not the value.
impl<T> fmt::Debug for LiveSnapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSnapshot").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The current value, for a short time, from [`Live::load`](crate::Live::load).
pub struct LiveRef<T>(pub(super) Guard<Arc<LiveSnapshot<T>>>);

impl<T> Deref for LiveRef<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// Shows the version, not the value.
impl<T> fmt::Debug for LiveRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveRef").field("version", &self.0.version).finish_non_exhaustive()
    }
}
