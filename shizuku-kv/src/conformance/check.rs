//! The type of a check, and the macro that lists the checks of a family.

use futures_core::future::BoxFuture;

use super::{Capability, CheckResult, Fixture};

/// A check as a function pointer.
pub type CheckFunction = for<'a> fn(&'a Fixture) -> BoxFuture<'a, CheckResult>;

/// One clause of the contract, and the function that checks it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Check {
    /// Name of the function, unique among all checks.
    pub name: &'static str,
    /// The module of the check.
    pub family: &'static str,
    /// The guarantee in the contract.
    pub clause: &'static str,
    /// The capabilities that the backend must claim for this guarantee. If it does not claim one,
    /// the suite checks its rejection instead.
    pub needs: &'static [Capability],
    /// True if the check ends connections or opens several, so that it needs a
    /// [`Suite`](super::Suite) that [can open connections](super::Suite::connecting).
    pub own_connection: bool,
    /// The check itself.
    pub run: CheckFunction,
}

/// The checks of a family: each function with the capabilities that it needs and the clause that it
/// checks.
macro_rules! checks {
    ($family:literal; $($name:ident [$($capability:ident),*] $clause:literal,)+) => {
        checks!($family, false; $($name [$($capability),*] $clause,)+)
    };
    ($family:literal, $own:literal; $($name:ident [$($capability:ident),*] $clause:literal,)+) => {
        &[$($crate::conformance::Check {
            name: stringify!($name),
            family: $family,
            clause: $clause,
            needs: &[$($crate::conformance::Capability::$capability),*],
            own_connection: $own,
            run: |fixture| Box::pin($name(fixture)),
        }),+]
    };
}
