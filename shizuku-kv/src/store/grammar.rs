//! The grammar of keys and of stores' names, as `const` functions without dependencies.
//!
//! The derive crate compiles this same file, so that a literal is refused at compile time by exactly the rule that the
//! store applies at run time.

/// The longest key, in bytes.
pub(crate) const MAX_KEY_LEN: usize = 1024;

/// Why a string is not a key: the byte position of the first offence and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyFault {
    /// Byte offset of the first offending byte; the length of the string where something is missing at its end.
    pub(crate) position: usize,
    /// What is wrong there.
    pub(crate) kind: KeyFaultKind,
}

/// The ways in which a string fails to be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyFaultKind {
    /// The string is empty.
    Empty,
    /// A byte outside `[A-Za-z0-9_=/-]` and the separating dot.
    Byte(u8),
    /// A dot at the start, at the end, or next to another dot: an empty token.
    EmptyToken,
    /// The prefix `_kv`, which NATS reserves.
    Reserved,
    /// More than [`MAX_KEY_LEN`] bytes.
    TooLong,
}

impl KeyFaultKind {
    /// What is wrong and what would be right, in words that follow "at byte N: ".
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Empty => "a key has at least one token",
            Self::Byte(_) => "keys are tokens of A-Z a-z 0-9 _ = / - joined by single dots",
            Self::EmptyToken => "empty token: a key has no leading, trailing or double dot",
            Self::Reserved => "keys must not start with `_kv`, which is reserved",
            Self::TooLong => "keys are at most 1024 bytes long",
        }
    }
}

/// Checks `key` against the grammar; the first offence, if there is one.
pub(crate) const fn check_key(key: &str) -> Result<(), KeyFault> {
    let bytes = key.as_bytes();
    if bytes.is_empty() {
        return Err(KeyFault { position: 0, kind: KeyFaultKind::Empty });
    }
    if bytes.len() >= 3 && bytes[0] == b'_' && bytes[1] == b'k' && bytes[2] == b'v' {
        return Err(KeyFault { position: 0, kind: KeyFaultKind::Reserved });
    }
    let mut token_is_empty = true;
    let mut position = 0;
    while position < bytes.len() {
        if position == MAX_KEY_LEN {
            return Err(KeyFault { position, kind: KeyFaultKind::TooLong });
        }
        match bytes[position] {
            b'.' if token_is_empty => {
                return Err(KeyFault { position, kind: KeyFaultKind::EmptyToken });
            }
            b'.' => token_is_empty = true,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'=' | b'/' | b'-' => {
                token_is_empty = false;
            }
            byte => return Err(KeyFault { position, kind: KeyFaultKind::Byte(byte) }),
        }
        position += 1;
    }
    if token_is_empty {
        return Err(KeyFault { position: position - 1, kind: KeyFaultKind::EmptyToken });
    }
    Ok(())
}

/// The longest name of a store, in bytes.
pub(crate) const MAX_STORE_NAME_LEN: usize = 64;

/// Why a string is no name of a store: the byte position of the first offence, and what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreNameFault {
    /// Byte offset of the first offending byte.
    pub(crate) position: usize,
    /// What is wrong there.
    pub(crate) reason: &'static str,
}

/// Checks the name of a store: 1 to 64 characters of `[A-Za-z0-9_-]`.
pub(crate) const fn check_store_name(name: &str) -> Result<(), StoreNameFault> {
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Err(StoreNameFault { position: 0, reason: "it is empty" });
    }
    let mut position = 0;
    while position < bytes.len() {
        if position == MAX_STORE_NAME_LEN {
            return Err(StoreNameFault { position, reason: "it is longer than 64 characters" });
        }
        if !(bytes[position].is_ascii_alphanumeric() || matches!(bytes[position], b'_' | b'-')) {
            return Err(StoreNameFault {
                position,
                reason: "only A-Z a-z 0-9 _ and - are allowed",
            });
        }
        position += 1;
    }
    Ok(())
}
