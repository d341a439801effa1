//! The grammar of keys and of stores' names, as `const` functions without dependencies.
//!
//! The derive crate compiles this same file. It therefore rejects a literal at compile time by
//! exactly the rule of the store at run time (ADR 0014).

/// Maximum length of a key, in bytes.
pub(crate) const MAX_KEY_LEN: usize = 1024;

/// A fault in a string that is not a key: the byte position of the first offence and its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyFault {
    /// Byte offset of the first offending byte, or the length of the string if a part is missing at
    /// its end.
    pub(crate) position: usize,
    /// The kind of the fault.
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
    /// Returns the fault and the rule, in words that follow "at byte N: ".
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

/// Checks `key` against the grammar. Returns the first offence if there is one.
pub(crate) const fn check_key(key: &str) -> Result<(), KeyFault> {
    match key.as_bytes() {
        [] => Err(KeyFault { position: 0, kind: KeyFaultKind::Empty }),
        [start @ .., b'.'] => match check_prefix(start) {
            Ok(()) => Err(KeyFault { position: start.len(), kind: KeyFaultKind::EmptyToken }),
            fault => fault,
        },
        whole => check_prefix(whole),
    }
}

/// Checks that keys can start with `prefix`, which may be empty or end within a token; otherwise
/// returns the first offence.
pub(crate) const fn check_prefix(prefix: &[u8]) -> Result<(), KeyFault> {
    if let [b'_', b'k', b'v', ..] = prefix {
        return Err(KeyFault { position: 0, kind: KeyFaultKind::Reserved });
    }
    let mut token_is_empty = true;
    let mut position = 0;
    while position < prefix.len() {
        if position == MAX_KEY_LEN {
            return Err(KeyFault { position, kind: KeyFaultKind::TooLong });
        }
        match prefix[position] {
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
    // The key has no room for the token after the last dot.
    if token_is_empty && position == MAX_KEY_LEN {
        return Err(KeyFault { position, kind: KeyFaultKind::TooLong });
    }
    Ok(())
}

/// Maximum length of a store's name, in bytes.
pub(crate) const MAX_STORE_NAME_LEN: usize = 64;

/// A fault in a string that is not the name of a store: the byte position of the first offence, and
/// the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreNameFault {
    /// Byte offset of the first offending byte.
    pub(crate) position: usize,
    /// The rule that it breaks.
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
