//! The names that the derive macros use, so that they need nothing in the user's own scope or
//! dependencies. These names may change at any time.

pub use ::bytes::Bytes;
pub use ::core;
pub use ::serde;
pub use ::std;

pub use super::codec::json;
#[cfg(feature = "messagepack")]
pub use super::codec::messagepack;
#[cfg(feature = "postcard")]
pub use super::codec::postcard;
#[cfg(feature = "protobuf")]
pub use super::codec::protobuf;
#[cfg(feature = "protobuf")]
pub use super::codec::required::{CanDecode, CanEncode};
pub use super::codec::required::{CanDeserialize, CanSerialize};
pub use super::escape::Escaped;
pub use crate::__key_type as if_this_name_is_taken_give_another_with_key_type;

use super::escape::unescape;
use super::key::{prints_as, store_key};
use super::{ByteDeserialize, DecodeError, KeyValue, ParseKeyError, ValidationError};
use crate::store::{Key, KvError, WatchScope};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::{Debug, Display};
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::{FromStr, Split};
use std::sync::Arc;

/// Writes a key type. If its name is taken, rustc's error names the macro that wrote it. So the
/// derives use the macro's exported name above, which says what to do.
#[doc(hidden)]
#[macro_export]
macro_rules! __key_type {
    ($(#[$attribute:meta])* $visibility:vis $name:ident $($fields:tt)*) => {
        $(#[$attribute])* $visibility struct $name $($fields)*
    };
}

/// The tokens of a key that is being parsed.
#[derive(Debug)]
pub struct KeyTokens<'k> {
    template: &'static str,
    text: &'k str,
    rest: Split<'k, char>,
}

impl<'k> KeyTokens<'k> {
    /// Splits `text`, which should be a key of `template`, into tokens.
    pub fn new(template: &'static str, text: &'k str) -> Self {
        Self { template, text, rest: text.split('.') }
    }

    /// Reads one token as itself.
    pub fn literal(&mut self, literal: &'static str) -> Result<(), ParseKeyError> {
        match self.next()? {
            token if token == literal => Ok(()),
            token => Err(self.error(format!("{token:?} stands where {literal:?} should"))),
        }
    }

    /// Reads one token as the value of a field.
    pub fn field<T: Parses>(&mut self, field: &'static str) -> Result<T, ParseKeyError> {
        let token = self.next()?;
        let Some(text) = unescape(token) else {
            return Err(self.error(format!("the token {token:?} is not an escaped {field}")));
        };
        T::parse(&text).map_err(|error| self.error(format!("{text:?} is not a {field}: {error}")))
    }

    /// Rejects tokens that are left over, and a field that is not written as it would be printed.
    pub fn finish<K: Display>(mut self, key: K) -> Result<K, ParseKeyError> {
        if self.rest.next().is_some() {
            return Err(self.error("too many tokens"));
        }
        if prints_as(&key, self.text) {
            Ok(key)
        } else {
            Err(self.error("a field is not written as it would be printed"))
        }
    }

    fn next(&mut self) -> Result<&'k str, ParseKeyError> {
        self.rest.next().ok_or_else(|| self.error("too few tokens"))
    }

    fn error(&self, reason: impl Into<Cow<'static, str>>) -> ParseKeyError {
        ParseKeyError::new(self.template, reason)
    }
}

/// Prints a field of a key.
pub fn print<T: Prints>(field: &T) -> Escaped<&dyn Display> {
    Escaped(field.printed())
}

/// A field of a key that prints.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in a key: it does not implement `Display`",
    label = "a field of a key has to print",
    note = "implement `Display` and `FromStr` for `{Self}`; what it prints has to parse to an equal value"
)]
pub trait Prints {
    #[doc(hidden)]
    fn printed(&self) -> &dyn Display;
}

#[diagnostic::do_not_recommend]
impl<T: Display> Prints for T {
    fn printed(&self) -> &dyn Display {
        self
    }
}

/// A field of a key that parses.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in a key: it does not implement `FromStr` with an error that implements `Display`",
    label = "a field of a key has to parse",
    note = "implement `FromStr` and `Display` for `{Self}`; what it prints has to parse to an equal value"
)]
pub trait Parses: Sized {
    #[doc(hidden)]
    fn parse(text: &str) -> Result<Self, impl Display>;
}

#[diagnostic::do_not_recommend]
impl<T: FromStr<Err: Display>> Parses for T {
    fn parse(text: &str) -> Result<Self, impl Display> {
        T::from_str(text)
    }
}

/// A field of a key with the traits that the key type derives.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in a key: it does not implement all of `Clone`, `Debug`, `Eq`, `Hash` and `Ord`",
    label = "a field of a key has to be comparable",
    note = "add `#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]` to `{Self}`"
)]
pub trait KeyPart: Sized {
    #[doc(hidden)]
    fn __clone(&self) -> Self;

    #[doc(hidden)]
    fn __debug(&self) -> &dyn Debug;

    #[doc(hidden)]
    fn __eq(&self, other: &Self) -> bool;

    #[doc(hidden)]
    fn __cmp(&self, other: &Self) -> Ordering;

    #[doc(hidden)]
    fn __hash(&self, state: &mut impl Hasher);
}

#[diagnostic::do_not_recommend]
impl<T: Clone + Debug + Eq + Hash + Ord> KeyPart for T {
    fn __clone(&self) -> Self {
        self.clone()
    }

    fn __debug(&self) -> &dyn Debug {
        self
    }

    fn __eq(&self, other: &Self) -> bool {
        self == other
    }

    fn __cmp(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn __hash(&self, state: &mut impl Hasher) {
        self.hash(state);
    }
}

/// A value that converts to the text field of type `T` at index `INDEX` of the key `K`: any text
/// type that converts to `T`.
///
/// The derive implements this trait for `T` itself. `K` makes the impl local to the deriving crate.
/// `INDEX` distinguishes fields whose types are two names of one type.
#[diagnostic::on_unimplemented(
    message = "this field of the key is a `{T}`, not a `{Self}`",
    label = "expected a `{T}`"
)]
pub trait IntoField<T, K, const INDEX: usize> {
    #[doc(hidden)]
    fn __into_field(self) -> T;
}

macro_rules! texts {
    ($($text:ty),*) => {$(
        #[diagnostic::do_not_recommend]
        impl<T: for<'t> From<&'t str>, K, const INDEX: usize> IntoField<T, K, INDEX> for $text {
            fn __into_field(self) -> T {
                let text: &str = self.as_ref();
                T::from(text)
            }
        }

        #[diagnostic::do_not_recommend]
        impl<T: for<'t> From<&'t str>, K, const INDEX: usize> IntoField<T, K, INDEX> for ($text,) {
            fn __into_field(self) -> T {
                IntoField::<T, K, INDEX>::__into_field(self.0)
            }
        }
    )*};
}

texts!(&str, &&str, &String, Box<str>, &Box<str>);
texts!(Cow<'_, str>, &Cow<'_, str>, Arc<str>, &Arc<str>);

/// Returns the scope of the keys that start with the printed text.
pub fn scope(prefix: std::fmt::Arguments<'_>) -> WatchScope {
    WatchScope::prefix(prefix.to_string())
}

/// Returns the store's key for a key type.
pub fn into_key(key: &impl Display) -> Result<Key, KvError> {
    store_key(key)
}

/// A function that validates a value.
#[diagnostic::on_unimplemented(
    message = "this function cannot validate `{T}`: `validate` wants `fn(&{T}) -> Result<(), &'static str>`",
    label = "not a `fn(&{T}) -> Result<(), &'static str>`",
    note = "the text says what the rule asks for; it is a constant, so that nothing of a value gets into an error"
)]
pub trait Rule<T> {
    /// Checks a value. Returns the rule's requirement if the value breaks it.
    fn __check(self, value: &T) -> Result<(), &'static str>;
}

#[diagnostic::do_not_recommend]
impl<T, F: FnOnce(&T) -> Result<(), &'static str>> Rule<T> for F {
    fn __check(self, value: &T) -> Result<(), &'static str> {
        self(value)
    }
}

/// Checks a value with a rule, whose name is its path.
pub fn validate<T, R: Rule<T>>(
    value: &T,
    name: &'static str,
    rule: R,
) -> Result<(), ValidationError> {
    rule.__check(value).map_err(|reason| ValidationError::new(name, reason))
}

/// Deserializes a key from its printed text.
pub fn deserialize_key<'de, K, D>(deserializer: D) -> Result<K, D::Error>
where
    K: FromStr<Err = ParseKeyError>,
    D: serde::Deserializer<'de>,
{
    struct Text<K>(PhantomData<K>);

    impl<K: FromStr<Err = ParseKeyError>> serde::de::Visitor<'_> for Text<K> {
        type Value = K;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a key")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<K, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(PhantomData))
}

/// A type of which a derive sees only one direction. The compiler decides whether it has the other.
#[derive(Debug)]
pub struct ReadBack<T>(PhantomData<T>);

impl<T> ReadBack<T> {
    /// The value for a type.
    pub const OF: Self = Self(PhantomData);
}

/// A type that can be read.
pub trait Reads<T> {
    #[doc(hidden)]
    fn __read(&self, bytes: &Bytes) -> Option<Result<T, DecodeError>>;
}

impl<T: ByteDeserialize> Reads<T> for ReadBack<T> {
    fn __read(&self, bytes: &Bytes) -> Option<Result<T, DecodeError>> {
        Some(T::from_bytes(bytes))
    }
}

/// Any other type. The compiler considers a method behind one more reference only if there is no
/// other.
pub trait ReadsNothing<T> {
    #[doc(hidden)]
    fn __read(&self, bytes: &Bytes) -> Option<Result<T, DecodeError>>;
}

impl<T> ReadsNothing<T> for &ReadBack<T> {
    fn __read(&self, _: &Bytes) -> Option<Result<T, DecodeError>> {
        None
    }
}

/// Requires that a type is a record, if its attribute has options of one.
pub fn is_record<T: HasOptions>() {}

/// A type whose attribute may have the options of a record.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a record, so that this option means nothing to it",
    label = "an option of a record",
    note = "add `#[derive(KeyValue)]` or `#[derive(StaticKeyIndexedValue)]`, or remove the option; the options of a pair \
            belong on the pair, not on its value"
)]
pub trait HasOptions {}

#[diagnostic::do_not_recommend]
impl<T: KeyValue> HasOptions for T {}
