//! Rules that a record's type sets for its values.

use std::fmt;

/// The rule that a value breaks, and what it asks for. Both are constants of the program, so that nothing of the value
/// can be in them.
///
/// `#[kv(validate = path)]` makes this of what the function at `path` returns:
///
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
/// let refused = Limits { connections: 0 }.write_to_anyway(&store).await.unwrap_err();
/// assert!(matches!(&refused, KvWriteError::Invalid { source, .. } if source.rule() == "Limits::check"));
/// assert_eq!(
///     refused.to_string(),
///     "Limits for key config.limits breaks its rule `Limits::check`: at least one connection is needed"
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenRule {
    rule: &'static str,
    reason: &'static str,
}

impl BrokenRule {
    /// A rule's name, and what it asks for.
    pub const fn new(rule: &'static str, reason: &'static str) -> Self {
        Self { rule, reason }
    }

    /// The name of the rule: with the derives, the path of the function as it was written.
    pub const fn rule(&self) -> &'static str {
        self.rule
    }

    /// What the rule asks for.
    pub const fn reason(&self) -> &'static str {
        self.reason
    }
}

impl fmt::Display for BrokenRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.rule, self.reason)
    }
}

impl std::error::Error for BrokenRule {}
