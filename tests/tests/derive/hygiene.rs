//! The output of the derives does not depend on names in the user's scope, and triggers no lint.

#[deny(warnings, missing_docs, clippy::all, clippy::pedantic)]
#[allow(dead_code, unreachable_pub, reason = "it only has to compile")]
mod scope {
    #![no_implicit_prelude]

    /// Ours.
    pub struct Result;
    /// Ours.
    pub struct Option;
    /// Ours.
    pub struct Store;
    /// Ours.
    pub struct String;
    /// Ours.
    pub struct Key;
    /// Ours.
    pub trait Clone {}
    mod core {}
    mod std {}
    /// Our own; a pattern of that name would mean them.
    #[allow(non_upper_case_globals, reason = "it is meant to be in the way")]
    mod constants {
        pub(super) const fields: u8 = 1;
        pub(super) const value: u8 = 1;
        pub(super) const bytes: u8 = 1;
        pub(super) const key: u8 = 1;
        pub(super) const text: u8 = 1;
        pub(super) const tokens: u8 = 1;
        pub(super) const field_0: u8 = 1;
    }
    #[allow(unused_imports, reason = "it is meant to be in the way")]
    use constants::*;

    /// A record.
    #[derive(
        ::serde::Serialize,
        ::serde::Deserialize,
        ::shizuku_kv::JsonByteSer,
        ::shizuku_kv::JsonByteDes,
        ::shizuku_kv::KeyValue,
    )]
    #[kv(key = "hygiene.{f}.{tokens}")]
    pub struct Record {
        /// A field.
        pub tokens: u8,
        /// A field.
        #[deprecated = "not used any more"]
        pub f: u8,
    }

    /// A record.
    #[derive(
        ::serde::Serialize,
        ::serde::Deserialize,
        ::shizuku_kv::JsonByteSer,
        ::shizuku_kv::JsonByteDes,
        ::shizuku_kv::StaticKeyIndexedValue,
    )]
    #[kv(key = "hygiene")]
    pub struct Static;

    /// A record.
    #[derive(::shizuku_kv::KeyValue)]
    pub struct Pair(#[kv(key)] pub u8, #[kv(value)] pub u8);

    /// A record with all options.
    #[derive(::serde::Serialize, ::serde::Deserialize, ::shizuku_kv::KeyValue)]
    #[kv(
        key = "everything.{tenant}.{r#type}.{last}",
        bucket = "everything",
        validate = rules::everything,
        ttl = "30s",
        codec = postcard,
        key_type = Everywhere,
        key_serde
    )]
    pub struct Everything {
        tenant: ::std::string::String,
        r#type: u8,
        last: ::std::string::String,
    }

    /// A record.
    #[derive(::serde::Serialize, ::serde::Deserialize, ::shizuku_kv::StaticKeyIndexedValue)]
    #[kv(
        key = "everything",
        bucket = "everything",
        validate = Self::check,
        ttl = "30s",
        codec = messagepack
    )]
    pub struct EverythingStatic;

    impl EverythingStatic {
        #[allow(clippy::unnecessary_wraps, reason = "the signature is given")]
        fn check(&self) -> ::core::result::Result<(), &'static str> {
            let Self = self;
            ::core::result::Result::Ok(())
        }
    }

    mod rules {
        #[allow(clippy::unnecessary_wraps, reason = "the signature is given")]
        pub(super) fn everything(
            _: &super::Everything,
        ) -> ::core::result::Result<(), &'static str> {
            ::core::result::Result::Ok(())
        }
    }

    /// A key of a type that has the name of a standard library type and does not convert from a
    /// `&str`.
    #[derive(::shizuku_kv::KeyValue)]
    #[kv(key = "shadowed.{id}.{other}")]
    pub struct Shadowed {
        id: shadow::String,
        other: shadow::String,
    }

    /// Has the name of the standard library's type.
    pub mod shadow {
        /// A key's part.
        #[derive(
            ::core::fmt::Debug,
            ::core::clone::Clone,
            ::core::cmp::PartialEq,
            ::core::cmp::Eq,
            ::core::hash::Hash,
            ::core::cmp::PartialOrd,
            ::core::cmp::Ord,
        )]
        pub struct String(u8);

        impl ::core::fmt::Display for String {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Display::fmt(&self.0, f)
            }
        }

        impl ::core::str::FromStr for String {
            type Err = ::core::num::ParseIntError;

            fn from_str(text: &str) -> ::core::result::Result<Self, Self::Err> {
                ::core::result::Result::map(::core::str::FromStr::from_str(text), Self)
            }
        }

        /// The same, named without a path.
        #[derive(::shizuku_kv::KeyValue)]
        #[kv(key = "shadowed.{id}")]
        pub struct Shadowed {
            id: String,
        }
    }
}

/// The crate of a user who denies all lints.
#[deny(
    warnings,
    missing_docs,
    unused,
    unreachable_pub,
    missing_debug_implementations,
    rust_2018_idioms,
    single_use_lifetimes,
    trivial_casts,
    unused_qualifications,
    clippy::all,
    clippy::pedantic
)]
#[allow(dead_code, reason = "it only has to compile")]
mod denied {
    use serde::{Deserialize, Serialize};
    use shizuku_kv::{JsonByteDes, JsonByteSer, KeyValue, StaticKeyIndexedValue};

    /// An unused record.
    #[derive(Debug, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
    #[kv(key = "denied.{tenant}.{id}", bucket = "denied", ttl = "1m", key_serde)]
    pub(crate) struct Record {
        tenant: String,
        id: u64,
    }

    /// The same at the top level.
    #[derive(Debug, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
    #[kv(key = "{0}", validate = whole)]
    pub(super) struct Tuple(String, Vec<u8>);

    #[expect(clippy::unnecessary_wraps, reason = "the signature is given")]
    fn whole(_: &Tuple) -> Result<(), &'static str> {
        Ok(())
    }

    #[derive(Debug, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
    #[kv(key = "denied", bucket = "denied")]
    enum Mode<'a, T, const N: usize>
    where
        T: Clone,
    {
        Plain(T),
        Named { text: std::borrow::Cow<'a, str> },
    }

    #[derive(Debug, KeyValue)]
    struct Pair<K: shizuku_kv::RecordKey + Clone, V> {
        #[kv(value)]
        value: V,
        #[kv(key)]
        key: K,
    }

    #[derive(Debug, Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
    struct Whole {
        #[kv(key)]
        id: String,
        kept: bool,
    }
}

/// A warning about a deprecated item belongs to the user's own mention of it, not to the output of
/// the derives.
#[deny(warnings, missing_docs, clippy::all)]
#[allow(dead_code, unreachable_pub, reason = "it only has to compile")]
mod deprecated {
    use serde::{Deserialize, Serialize};
    use shizuku_kv::{JsonByteDes, JsonByteSer, KeyValue, StaticKeyIndexedValue};

    /// A record.
    #[deprecated = "not used any more"]
    #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
    #[kv(key = "deprecated")]
    pub struct Static {
        #[deprecated = "not used any more"]
        flag: bool,
    }

    /// A record.
    #[deprecated = "not used any more"]
    #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
    #[kv(key = "deprecated")]
    pub struct Wrapped<T>(T);

    /// A record.
    #[deprecated = "not used any more"]
    #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
    #[kv(key = "deprecated.{id}")]
    pub struct Record {
        #[deprecated = "not used any more"]
        id: u8,
    }

    /// A record.
    #[deprecated = "not used any more"]
    #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
    #[kv(key = "deprecated.{0}.{1}")]
    pub struct Tuple(#[deprecated = "not used any more"] u8, u8);

    /// A record.
    #[deprecated = "not used any more"]
    #[derive(Serialize, Deserialize, JsonByteSer, JsonByteDes, KeyValue)]
    pub struct Whole {
        #[deprecated = "not used any more"]
        #[kv(key)]
        id: u8,
    }

    /// A record.
    #[deprecated = "not used any more"]
    #[derive(KeyValue)]
    pub struct Pair {
        #[deprecated = "not used any more"]
        #[kv(key)]
        id: u8,
        #[deprecated = "not used any more"]
        #[kv(value)]
        value: u8,
    }

    mod field_types {
        /// A key.
        #[deprecated = "not used any more"]
        pub type Id = u8;
    }

    /// A record. Without serde, which warns about such a field itself.
    #[derive(KeyValue)]
    #[kv(key = "deprecated.{id}")]
    pub struct OfType {
        #[allow(deprecated, reason = "said once, where it is named")]
        id: field_types::Id,
    }
}

/// Inside a macro of the user, in which types have invisible groups and names have their own
/// hygiene.
#[deny(warnings, missing_docs, clippy::all, clippy::pedantic)]
#[allow(dead_code, unreachable_pub, reason = "it only has to compile")]
mod in_a_macro {
    use serde::{Deserialize, Serialize};
    use shizuku_kv::KeyValue;

    macro_rules! record {
        (
            $(#[$meta:meta])* $visibility:vis $name:ident, $key:literal, $rule:path,
            $($field:ident: $ty:ty),*
        ) => {
            $(#[$meta])*
            #[derive(Serialize, Deserialize, KeyValue)]
            #[kv(key = $key, codec = json, validate = $rule, bucket = "macros")]
            $visibility struct $name { $($field: $ty),* }
        };
    }

    /// Private, in the key of a public record.
    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    struct Private(u8);

    impl std::fmt::Display for Private {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }

    impl std::str::FromStr for Private {
        type Err = std::num::ParseIntError;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            text.parse().map(Self)
        }
    }

    record!(/** A record. */ pub(super) Made, "made.{tenant}.{id}", any, tenant: String, id: u64);
    record!(/** A record. */ pub Exposing, "exposing.{id}.{other}", Exposing::check, id: Private, other: String);

    #[allow(clippy::unnecessary_wraps, reason = "the signature is given")]
    fn any(_: &Made) -> Result<(), &'static str> {
        Ok(())
    }

    impl Exposing {
        #[allow(clippy::unnecessary_wraps, reason = "the signature is given")]
        fn check(_: &Self) -> Result<(), &'static str> {
            Ok(())
        }
    }

    /// `$tenant: String` is the standard library's type.
    pub(super) fn scopes() -> shizuku_kv::WatchScope {
        let _ = MadeKey::from(("a", 1));
        MadeKey::scope_tenant("a")
    }
}

#[test]
fn string_in_a_macro_is_text() {
    assert_eq!(in_a_macro::scopes(), shizuku_kv::WatchScope::prefix("made.a."));
}
