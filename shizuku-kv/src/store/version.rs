//! Version tokens, which a compare-and-swap compares.

use std::fmt;

use super::KvError;

/// The version of one key's value: opaque, compared for equality only.
///
/// A key's version changes with every write to it. A token is at most 16 bytes, inline; it is
/// `Copy` and never allocates. Do not compare tokens of different stores: the comparison is safe,
/// but means nothing.
///
/// A token can be stored and read back: [`to_bytes`](Self::to_bytes) and
/// [`from_bytes`](Self::from_bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VersionToken(Repr);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Repr {
    /// The revision number of a backend that numbers its revisions.
    Number(u64),
    /// Any other token; bytes past `len` are zero, so that the derived comparison is right.
    Opaque { len: u8, bytes: [u8; VersionToken::MAX_LEN] },
}

const TAG_NUMBER: u8 = 1;
const TAG_OPAQUE: u8 = 2;

impl VersionToken {
    /// Maximum length of an opaque token, in bytes.
    pub const MAX_LEN: usize = 16;

    /// Returns a token that is a revision number.
    pub const fn from_u64(revision: u64) -> Self {
        Self(Repr::Number(revision))
    }

    /// Returns a token of a backend's own bytes, at most [`MAX_LEN`](Self::MAX_LEN) of them; for
    /// authors of backends.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidVersion`] if there are more.
    pub fn opaque(token: &[u8]) -> Result<Self, KvError> {
        let mut bytes = [0; Self::MAX_LEN];
        let Some(target) = bytes.get_mut(..token.len()) else {
            return Err(KvError::InvalidVersion { reason: "more than 16 bytes" });
        };
        target.copy_from_slice(token);
        // The length was checked against 16 above.
        Ok(Self(Repr::Opaque { len: token.len() as u8, bytes }))
    }

    /// Returns the revision number. Returns `None` if the backend does not number its revisions
    /// (memory and NATS do).
    pub const fn as_u64(&self) -> Option<u64> {
        match self.0 {
            Repr::Number(number) => Some(number),
            Repr::Opaque { .. } => None,
        }
    }

    /// Returns the token as bytes, to be stored; [`from_bytes`](Self::from_bytes) reads them back.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.0 {
            Repr::Number(number) => {
                let mut out = vec![TAG_NUMBER];
                out.extend_from_slice(&number.to_be_bytes());
                out
            }
            Repr::Opaque { len, bytes } => {
                let mut out = vec![TAG_OPAQUE];
                out.extend_from_slice(&bytes[..usize::from(*len)]);
                out
            }
        }
    }

    /// Reads a token from the bytes that [`to_bytes`](Self::to_bytes) returned.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidVersion`] if the bytes are not a token.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KvError> {
        match bytes.split_first() {
            Some((&TAG_NUMBER, number)) => match number.try_into() {
                Ok(number) => Ok(Self::from_u64(u64::from_be_bytes(number))),
                Err(_) => Err(KvError::InvalidVersion { reason: "a revision number has 8 bytes" }),
            },
            Some((&TAG_OPAQUE, token)) => Self::opaque(token),
            Some(_) => Err(KvError::InvalidVersion { reason: "unknown format" }),
            None => Err(KvError::InvalidVersion { reason: "no bytes" }),
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
