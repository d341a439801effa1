//! Version tokens as bytes.

use super::version::Repr;
use super::{KvError, VersionToken};

const TAG_NUMBER: u8 = 1;
const TAG_OPAQUE: u8 = 2;

impl VersionToken {
    /// Returns a token of a backend's own bytes, at most [`MAX_LEN`](Self::MAX_LEN) of them. For
    /// authors of backends.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidVersion`] if the bytes exceed this maximum.
    pub fn opaque(token: &[u8]) -> Result<Self, KvError> {
        let mut bytes = [0; Self::MAX_LEN];
        let Some(target) = bytes.get_mut(..token.len()) else {
            return Err(KvError::InvalidVersion { reason: "more than 16 bytes" });
        };
        target.copy_from_slice(token);
        // The length was checked against 16 above.
        Ok(Self(Repr::Opaque { len: token.len() as u8, bytes }))
    }

    /// Returns the token as bytes, to be stored. [`from_bytes`](Self::from_bytes) reads them back.
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
