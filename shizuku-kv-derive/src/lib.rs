//! The derive macros of [`shizuku-kv`](https://docs.rs/shizuku-kv), which re-exports them; use them from there.
//!
//! Each goes the same way: `attr` parses what `#[kv(…)]` says, `ast` is the input as the user wrote it, `valid` holds
//! every check and gives what can be expanded, `expand` only quotes. Where a check fails, `fallback` still writes an
//! impl, so that the user sees that one error and not what follows from it.

mod ast;
mod attr;
mod expand;
mod fallback;
mod grammar;
mod suggest;
mod valid;

use proc_macro::TokenStream;

/// Implements `ByteSerialize`: the value as JSON, by the type's own `serde::Serialize`.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[proc_macro_derive(JsonByteSer, attributes(kv))]
pub fn derive_json_byte_ser(input: TokenStream) -> TokenStream {
    expand::derive(input, expand::json::serialize, fallback::json_serialize)
}

/// Implements `ByteDeserialize`: the value from JSON, by the type's own `serde::Deserialize`.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[proc_macro_derive(JsonByteDes, attributes(kv))]
pub fn derive_json_byte_des(input: TokenStream) -> TokenStream {
    expand::derive(input, expand::json::deserialize, fallback::json_deserialize)
}

/// Implements `StaticKeyIndexedValue`, and through it `KeyValue`: one value at one key. A generic type has one key too:
/// every instantiation is under it.
///
/// - `#[kv(key = "config.database")]`: the key, checked when it compiles by the store's own grammar.
/// - `#[kv(crate = path)]`: where `shizuku_kv` is, for crates that re-export it.
#[proc_macro_derive(StaticKeyIndexedValue, attributes(kv))]
pub fn derive_static_key_indexed_value(input: TokenStream) -> TokenStream {
    expand::derive(input, expand::static_key::expand, fallback::static_key)
}

/// Implements `KeyValue`: many values, each with its key. In one of three forms:
///
/// - `#[kv(key = "user.{tenant}.{id}")]` on `struct User`: the key is made of fields. A type `UserKey` is generated,
///   with the visibility of the struct and those fields, which prints, parses, compares and is made from a tuple. Each
///   field's value is escaped, so that it can be any text and never leaves its token. The fields' types have `Clone`,
///   `Display`, `FromStr`, `Debug`, `Eq`, `Hash` and `Ord`. The whole struct is stored. Listing and watching all records
///   takes every key that starts with what stands before the first placeholder, so that all of these have to be of
///   this type: do not keep records at `user.{id}` and others at `user.{id}.settings` in the same store, or go on past
///   `KvReadError::InvalidRecordKey`.
/// - `#[kv(key)]` on one field: the field is the key, as it prints. The whole struct is stored.
/// - `#[kv(key)]` on one field and `#[kv(value)]` on the other: a pair. Only the value is stored.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[proc_macro_derive(KeyValue, attributes(kv))]
pub fn derive_key_value(input: TokenStream) -> TokenStream {
    expand::derive(input, expand::record::expand, fallback::record)
}
