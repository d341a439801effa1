//! What the derive macros name, so that they need nothing in the user's own scope or dependencies. Nothing here is
//! promised to stay.

pub use ::bytes::Bytes;
pub use ::core;
pub use ::serde::Serialize;
pub use ::serde::de::DeserializeOwned;
pub use ::std;

pub use super::escape::Escaped;
pub use super::json::{from_bytes, to_bytes};

use super::ParseKeyError;
use super::escape::unescape;
use std::fmt::Display;
use std::str::FromStr;

/// Reads one token of a key as the value of a field.
pub fn parse_field<T>(template: &'static str, field: &'static str, token: &str) -> Result<T, ParseKeyError>
where
    T: FromStr<Err: Display>,
{
    let Some(text) = unescape(token) else {
        return Err(ParseKeyError::new(template, format!("the token {token:?} is not an escaped {field}")));
    };
    text.parse().map_err(|error| ParseKeyError::new(template, format!("{text:?} is not a {field}: {error}")))
}

/// Reads one token of a key as itself.
pub fn parse_literal(
    template: &'static str,
    literal: &'static str,
    token: &str,
) -> Result<(), ParseKeyError> {
    if token == literal {
        Ok(())
    } else {
        Err(ParseKeyError::new(template, format!("{token:?} stands where {literal:?} should")))
    }
}

/// The next token of a key.
pub fn next_token<'k>(
    template: &'static str,
    tokens: &mut std::str::Split<'k, char>,
) -> Result<&'k str, ParseKeyError> {
    tokens.next().ok_or_else(|| ParseKeyError::new(template, "too few tokens"))
}

/// Refuses tokens that are left over, and a field that is not written as it would be printed.
pub fn finish_key<K: Display>(
    template: &'static str,
    mut tokens: std::str::Split<'_, char>,
    text: &str,
    key: K,
) -> Result<K, ParseKeyError> {
    if tokens.next().is_some() {
        return Err(ParseKeyError::new(template, "too many tokens"));
    }
    if super::key::prints_as(&key, text) {
        Ok(key)
    } else {
        Err(ParseKeyError::new(template, "a field is not written as it would be printed"))
    }
}
