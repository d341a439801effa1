//! Rules that a record's type sets for its values (ADR 0019).

use std::fmt;

/// The rule that a value breaks, and its requirement. Both are constants of the program, so that
/// they contain no part of the value.
///
/// `#[kv(validate = path)]` makes this from the result of the function at `path`:
#[cfg_attr(all(feature = "derive", feature = "memory"), doc = "```")]
#[cfg_attr(not(all(feature = "derive", feature = "memory")), doc = "```text")]
/// use serde::{Deserialize, Serialize};
/// use shizuku_kv::{JsonByteDes, JsonByteSer, KeyValue, KvWriteError, StaticKeyIndexedValue};
///
/// #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
/// #[kv(key = "config.limits", validate = Limits::check)]
/// struct Limits {
///     connections: u32,
/// }
///
/// impl Limits {
///     fn check(&self) -> Result<(), &'static str> {
///         if self.connections == 0 { Err("at least one connection is needed") } else { Ok(()) }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = shizuku_kv::connect("memory:").await?.store("config").await?;
/// let rejected = Limits { connections: 0 }.write_to_anyway(&store).await.unwrap_err();
/// let KvWriteError::Invalid { source, .. } = &rejected else { panic!("{rejected}") };
/// assert_eq!(source.rule(), "Limits::check");
/// assert_eq!(
///     rejected.to_string(),
///     "Limits for key config.limits breaks its rule `Limits::check`: at least one connection is \
///      needed; correct it before it is written"
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidationError {
    rule: &'static str,
    reason: &'static str,
}

impl ValidationError {
    /// Returns a rule with its name and its requirement.
    pub const fn new(rule: &'static str, reason: &'static str) -> Self {
        Self { rule, reason }
    }

    /// Returns the name of the rule. With the derives it is the path of the function as it was
    /// written.
    pub const fn rule(&self) -> &'static str {
        self.rule
    }

    /// Returns the requirement of the rule.
    pub const fn reason(&self) -> &'static str {
        self.reason
    }
}

impl fmt::Display for ValidationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.rule, self.reason)
    }
}

impl std::error::Error for ValidationError {}
