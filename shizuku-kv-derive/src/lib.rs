//! The derive macros of [`shizuku-kv`](https://docs.rs/shizuku-kv), which re-exports them; use them from there. Its
//! guide "Deriving" shows each attribute.
//!
//! Each goes the same way: `attr` parses what `#[kv(…)]` says, `ast` is the input as the user wrote it, `valid` holds
//! every check and gives what can be expanded, `expand` only quotes. Where a check fails, `fallback` still writes an
//! impl, so that the user sees that one error and not what follows from it.

mod ast;
mod attr;
mod codec;
mod expand;
mod fallback;
mod grammar;
mod suggest;
mod valid;

use proc_macro::TokenStream;

use codec::Codec;

/// Implements `ByteSerialize`: the value as JSON, by the type's own `serde::Serialize`.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[proc_macro_derive(JsonByteSer, attributes(kv))]
pub fn derive_json_byte_ser(input: TokenStream) -> TokenStream {
    serialize(input, Codec::Json)
}

/// Implements `ByteDeserialize`: the value from JSON, by the type's own `serde::Deserialize`.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[proc_macro_derive(JsonByteDes, attributes(kv))]
pub fn derive_json_byte_des(input: TokenStream) -> TokenStream {
    deserialize(input, Codec::Json)
}

/// Implements `ByteSerialize`: the value as MessagePack, by the type's own `serde::Serialize`. Structs are maps with
/// the names of their fields.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[cfg(feature = "messagepack")]
#[proc_macro_derive(MessagePackByteSer, attributes(kv))]
pub fn derive_messagepack_byte_ser(input: TokenStream) -> TokenStream {
    serialize(input, Codec::MessagePack)
}

/// Implements `ByteDeserialize`: the value from MessagePack, by the type's own `serde::Deserialize`.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[cfg(feature = "messagepack")]
#[proc_macro_derive(MessagePackByteDes, attributes(kv))]
pub fn derive_messagepack_byte_des(input: TokenStream) -> TokenStream {
    deserialize(input, Codec::MessagePack)
}

/// Implements `ByteSerialize`: the value in postcard's format, by the type's own `serde::Serialize`. The format has no
/// names: whoever reads has to have the same fields in the same order.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[cfg(feature = "postcard")]
#[proc_macro_derive(PostcardByteSer, attributes(kv))]
pub fn derive_postcard_byte_ser(input: TokenStream) -> TokenStream {
    serialize(input, Codec::Postcard)
}

/// Implements `ByteDeserialize`: the value from postcard's format, by the type's own `serde::Deserialize`.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[cfg(feature = "postcard")]
#[proc_macro_derive(PostcardByteDes, attributes(kv))]
pub fn derive_postcard_byte_des(input: TokenStream) -> TokenStream {
    deserialize(input, Codec::Postcard)
}

/// Implements `ByteSerialize`: the value as Protocol Buffers, by the type's own `prost::Message`.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[cfg(feature = "protobuf")]
#[proc_macro_derive(ProtobufByteSer, attributes(kv))]
pub fn derive_protobuf_byte_ser(input: TokenStream) -> TokenStream {
    serialize(input, Codec::Protobuf)
}

/// Implements `ByteDeserialize`: the value from Protocol Buffers, by the type's own `prost::Message`.
///
/// `#[kv(crate = path)]` says where `shizuku_kv` is, for crates that re-export it.
#[cfg(feature = "protobuf")]
#[proc_macro_derive(ProtobufByteDes, attributes(kv))]
pub fn derive_protobuf_byte_des(input: TokenStream) -> TokenStream {
    deserialize(input, Codec::Protobuf)
}

/// Implements `StaticKeyIndexedValue`, and through it `KeyValue`: one value at one key. A generic type has one key too:
/// every instantiation is under it.
///
/// - `key = "config.database"`: the key, checked when it compiles by the store's own grammar.
/// - `bucket`, `validate`, `ttl`, `codec`, `crate`: as for [`KeyValue`](macro@KeyValue).
#[proc_macro_derive(StaticKeyIndexedValue, attributes(kv))]
pub fn derive_static_key_indexed_value(input: TokenStream) -> TokenStream {
    expand::derive(input, expand::static_key::expand, fallback::static_key)
}

/// Implements `KeyValue`: many values, each with its key. In one of three forms:
///
/// - `#[kv(key = "user.{tenant}.{id}")]` on `struct User`: the key is made of fields. A type `UserKey` is generated,
///   with the visibility of the struct and those fields, which prints, parses, compares, is made from a tuple, and has
///   the scopes of records that share leading fields (`UserKey::scope_tenant("acme")`). Each field's value is escaped,
///   so that it can be any text and never leaves its token. The fields' types have `Clone`, `Display`, `FromStr`,
///   `Debug`, `Eq`, `Hash` and `Ord`. The whole struct is stored. Listing and watching all records takes every key that
///   starts with what stands before the first placeholder, so that all of these have to be of this type: do not keep
///   records at `user.{id}` and others at `user.{id}.settings` in the same store, or go on past
///   `KvReadError::InvalidRecordKey`.
/// - `#[kv(key)]` on one field: the field is the key, as it prints. The whole struct is stored.
/// - `#[kv(key)]` on one field and `#[kv(value)]` on the other: a pair. Only the value is stored.
///
/// Further options of the type:
///
/// - `bucket = "users"`: `User::BUCKET`, and `User::open(&connection)`, which opens that store.
/// - `validate = path`: a function `fn(&User) -> Result<(), &'static str>`, asked before every write and after every
///   read.
/// - `ttl = "30s"`: every write gives the record this time to live; a store that has none for single keys refuses it.
/// - `codec = json`, `messagepack`, `postcard`, `protobuf`: both directions of a codec, as its two derives.
/// - `key_type = AccountKey`: another name for the key type.
/// - `key_serde`: serde for the key type, as the text that it prints.
/// - `crate = path`: where `shizuku_kv` is, for crates that re-export it.
#[proc_macro_derive(KeyValue, attributes(kv))]
pub fn derive_key_value(input: TokenStream) -> TokenStream {
    expand::derive(input, expand::record::expand, fallback::record)
}

fn serialize(input: TokenStream, codec: Codec) -> TokenStream {
    expand::derive(input, |input| expand::codec::serialize(input, codec), fallback::serialize)
}

fn deserialize(input: TokenStream, codec: Codec) -> TokenStream {
    expand::derive(input, |input| expand::codec::deserialize(input, codec), fallback::deserialize)
}
