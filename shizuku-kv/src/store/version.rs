//! Version tokens, which a compare-and-swap compares.

use std::fmt;

/// The version of one key's value: opaque, compared for equality. Only with the capability
/// [`ordered_versions`](crate::ConnectionCapabilities::ordered_versions) is there an order.
///
/// A key's version changes with every write to it. A token is at most 16 bytes, inline; it is
/// `Copy` and never allocates. Do not compare tokens of different stores: the comparison is safe,
/// but means nothing.
///
/// A token can be stored and read back: [`to_bytes`](Self::to_bytes) and
/// [`from_bytes`](Self::from_bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VersionToken(pub(super) Repr);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Repr {
    /// The revision number of a backend that numbers its revisions.
    Number(u64),
    /// Any other token; bytes past `len` are zero, so that the derived comparison is right.
    Opaque { len: u8, bytes: [u8; VersionToken::MAX_LEN] },
}

impl VersionToken {
    /// Maximum length of an opaque token, in bytes.
    pub const MAX_LEN: usize = 16;

    /// Returns a token that is a revision number.
    pub const fn from_u64(revision: u64) -> Self {
        Self(Repr::Number(revision))
    }

    /// Returns the revision number. Returns `None` if the backend does not number its revisions
    /// (all backends of this library do).
    pub const fn as_u64(&self) -> Option<u64> {
        match self.0 {
            Repr::Number(number) => Some(number),
            Repr::Opaque { .. } => None,
        }
    }
}

/// Formats a revision number as it is, and opaque bytes in hexadecimal after `0x`.
impl fmt::Display for VersionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Number(number) => write!(f, "{number}"),
            Repr::Opaque { len, bytes } => {
                f.write_str("0x")?;
                bytes[..usize::from(*len)].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for VersionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VersionToken({self})")
    }
}
