//! The result of a check, and the macros with which a check reports a failure.

use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;

use crate::store::KvError;

/// The result of a check.
pub type CheckResult<T = ()> = Result<T, CheckFailure>;

/// A deviation from the contract that a check found.
#[derive(Clone, Debug)]
pub struct CheckFailure {
    message: String,
    at: &'static Location<'static>,
}

impl CheckFailure {
    /// Returns a failure with the expected and the actual result.
    #[track_caller]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), at: Location::caller() }
    }

    /// Returns the expected and the actual result.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Shows the message and the line of the check.
impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.message, self.at.file(), self.at.line())
    }
}

impl StdError for CheckFailure {}

/// Converts the error of an operation that the check expected to succeed.
impl From<KvError> for CheckFailure {
    #[track_caller]
    fn from(error: KvError) -> Self {
        Self::new(format!("expected success, found the error: {error}"))
    }
}

/// Fails the check with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::CheckFailure::new(format!($($message)+)));
        }
    };
}

/// Fails the check unless the first value is equal to the second:
/// `ensure_eq!(found, expected, "what it is")`.
macro_rules! ensure_eq {
    ($found:expr, $expected:expr, $($what:tt)+) => {
        match (&$found, &$expected) {
            (found, expected) => {
                if found != expected {
                    let what = format!($($what)+);
                    let message = format!("{what}: expected {expected:?}, found {found:?}");
                    return Err($crate::conformance::CheckFailure::new(message));
                }
            }
        }
    };
}

/// Fails the check unless the result is an error of this pattern:
/// `ensure_error!(result, KvError::Closed { .. }, "what was done")`.
macro_rules! ensure_error {
    ($result:expr, $pattern:pat $(if $guard:expr)?, $($what:tt)+) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            other => {
                let found = match other {
                    Ok(_) => "success".to_owned(),
                    Err(error) => format!("the error {error:?}"),
                };
                let expected = concat!(stringify!($pattern) $(, " if ", stringify!($guard))?);
                let what = format!($($what)+);
                let message = format!("{what}: expected the error {expected}, found {found}");
                return Err($crate::conformance::CheckFailure::new(message));
            }
        }
    };
}
