//! String literals: their content, and errors that point into them (ADR 0022).

use std::ops::Range;
use std::time::Duration;

use proc_macro2::Span;
use syn::{Error, LitStr, Result};

use crate::grammar::{KeyFaultKind, check_key, check_store_name};

/// Maximum time to live in seconds: 100 years. Servers count it in nanoseconds, in 63 bits.
const LONGEST_TTL: u64 = 36_500 * 86_400;

/// Maximum number of characters of a text that is repeated under a message.
const LONGEST_PICTURE: usize = 80;

/// Returns an error about a part of a literal. If the compiler cannot point into literals (stable
/// Rust cannot), the message shows the part itself.
pub(crate) fn error_at(literal: &LitStr, part: Range<usize>, message: &str) -> Error {
    match subspan(literal, &part) {
        Some(span) => Error::new(span, message),
        None => {
            Error::new(literal.span(), format!("{message}{}", picture(&literal.value(), &part)))
        }
    }
}

/// Returns the span of a part of a literal whose source text is its value.
fn subspan(literal: &LitStr, part: &Range<usize>) -> Option<Span> {
    let token = literal.token();
    let text = token.to_string();
    let start = text.find('"')? + 1;
    let value =
        text.get(start..)?.strip_suffix(&format!("\"{}", "#".repeat(start.saturating_sub(2))))?;
    (value == literal.value())
        .then(|| token.subspan(start + part.start..start + part.end))
        .flatten()
}

/// Returns the text, and a line that points at a part of it.
fn picture(text: &str, part: &Range<usize>) -> String {
    let is_printable = |c: char| c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
    let Some((before, marked)) = text.get(..part.start).zip(text.get(part.clone())) else {
        return String::new();
    };
    if text.is_empty() || text.len() > LONGEST_PICTURE || !text.chars().all(is_printable) {
        return String::new();
    }
    let (before, marked) =
        (" ".repeat(before.chars().count()), "^".repeat(marked.chars().count().max(1)));
    format!("\n    {text}\n    {before}{marked}")
}

/// Checks a key with the store's grammar. `checked` is the written text with its placeholders
/// replaced by text of the same length.
pub(crate) fn check(literal: &LitStr, checked: &str) -> Result<()> {
    let Err(fault) = check_key(checked) else { return Ok(()) };
    let key = literal.value();
    let start = fault.position;
    let character = key.get(start..).and_then(|rest| rest.chars().next());
    let (found, length) = match fault.kind {
        KeyFaultKind::Empty => {
            return Err(Error::new(
                literal.span(),
                "invalid key: a key has at least one token: write one like `config.database`",
            ));
        }
        KeyFaultKind::Byte(byte) => match character {
            Some(character) => (format!("{character:?}"), character.len_utf8()),
            None => (format!("0x{byte:02x}"), 0),
        },
        KeyFaultKind::EmptyToken => ("'.'".to_owned(), 1),
        KeyFaultKind::Reserved => ("\"_kv\"".to_owned(), 3),
        KeyFaultKind::TooLong => (format!("a key of {} bytes", key.len()), key.len() - start),
    };
    let wildcard = match fault.kind {
        KeyFaultKind::Byte(b'*' | b'>') => {
            "; a key has no wildcards: list or watch a scope instead"
        }
        _ => "",
    };
    let message =
        format!("invalid key: {found} at byte {start}: {}{wildcard}", fault.kind.reason());
    Err(error_at(literal, start..start + length, &message))
}

/// Checks and returns the name of a store.
pub(crate) fn bucket(literal: &LitStr) -> Result<String> {
    let name = literal.value();
    let Err(fault) = check_store_name(&name) else { return Ok(name) };
    let message = match name.get(fault.position..).and_then(|rest| rest.chars().next()) {
        Some(character) => {
            let message = format!(
                "invalid bucket: {character:?} at byte {}: {}",
                fault.position, fault.reason
            );
            return Err(error_at(
                literal,
                fault.position..fault.position + character.len_utf8(),
                &message,
            ));
        }
        None => format!(
            "invalid bucket: {}: write 1 to 64 characters of A-Z a-z 0-9 _ and -",
            fault.reason
        ),
    };
    Err(Error::new(literal.span(), message))
}

/// Parses a duration: `30s`, `1h30m`. Backends store whole seconds only.
pub(crate) fn duration(literal: &LitStr) -> Result<Duration> {
    const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    const WAY_OUT: &str = "write whole numbers with units, the largest first: `30s`, `1h30m`, `7d`";
    let text = literal.value();
    let reject = |part, found: String| {
        Err(error_at(literal, part, &format!("invalid ttl: {found}: {WAY_OUT}")))
    };
    if text.is_empty() {
        return Err(Error::new(literal.span(), format!("invalid ttl: it is empty: {WAY_OUT}")));
    }
    let mut sum = Some(0_u64);
    let mut smallest = u64::MAX;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            let character = rest.chars().next().unwrap_or_default();
            return reject(
                at..at + character.len_utf8(),
                format!("{character:?} at byte {at} is not a digit"),
            );
        }
        let after = &rest[digits..];
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let unit = &after[..letters];
        let Some((_, seconds)) = UNITS.into_iter().find(|(name, _)| *name == unit) else {
            let found = match unit {
                "" => format!("the number at byte {at} has no unit"),
                "ms" => format!(
                    "{unit:?} at byte {} is shorter than a second, the shortest that stores keep",
                    at + digits
                ),
                unit => format!("{unit:?} at byte {} is no unit", at + digits),
            };
            let part =
                if unit.is_empty() { at..at + digits } else { at + digits..at + digits + letters };
            return reject(part, found);
        };
        if seconds >= smallest {
            let found =
                format!("{unit:?} at byte {} follows a unit that is not larger", at + digits);
            return reject(at + digits..at + digits + letters, found);
        }
        smallest = seconds;
        let part =
            rest[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
        sum = sum.zip(part).and_then(|(sum, part)| sum.checked_add(part));
        at += digits + letters;
    }
    match sum {
        None => reject(0..text.len(), "it is longer than can be counted".to_owned()),
        Some(sum) if sum > LONGEST_TTL => {
            reject(0..text.len(), "it is longer than 100 years".to_owned())
        }
        Some(0) => reject(0..text.len(), "it is no time at all".to_owned()),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
    }
}
