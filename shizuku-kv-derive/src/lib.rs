//! The derive macros of [`shizuku-kv`](https://docs.rs/shizuku-kv), which re-exports them; use them
//! from there. Its guide "Deriving" shows each attribute.
//!
//! Each derive has the same steps. `attr` parses `#[kv(…)]`. `ast` is the input as the user wrote
//! it. `valid` contains every check, and returns the parts to expand. `expand` only quotes. If a
//! check fails, `fallback` still writes an impl, so that the user sees only that error and no
//! consequences of it.

mod ast;
mod attr;
mod beside;
mod codec;
mod expand;
mod fallback;
mod grammar;
mod manifest;
mod suggest;
mod valid;

use proc_macro::TokenStream;

use codec::Codec;

/// Implements `ByteSerialize`: the value as JSON, by the type's own `serde::Serialize`.
///
/// `#[kv(crate = path)]` gives the path of `shizuku_kv`, for crates that re-export it.
#[proc_macro_derive(JsonByteSer, attributes(kv))]
pub fn derive_json_byte_ser(input: TokenStream) -> TokenStream {
    serialize(input, Codec::Json)
}

/// Implements `ByteDeserialize`: the value from JSON, by the type's own `serde::Deserialize`.
///
/// `#[kv(crate = path)]` gives the path of `shizuku_kv`, for crates that re-export it.
#[proc_macro_derive(JsonByteDes, attributes(kv))]
pub fn derive_json_byte_des(input: TokenStream) -> TokenStream {
    deserialize(input, Codec::Json)
}

/// Implements `ByteSerialize`: the value as MessagePack, by the type's own `serde::Serialize`.
/// Structs are maps with the names of their fields.
///
/// `#[kv(crate = path)]` gives the path of `shizuku_kv`, for crates that re-export it.
#[cfg(feature = "messagepack")]
#[proc_macro_derive(MessagePackByteSer, attributes(kv))]
pub fn derive_messagepack_byte_ser(input: TokenStream) -> TokenStream {
    serialize(input, Codec::MessagePack)
}

/// Implements `ByteDeserialize`: the value from MessagePack, by the type's own
/// `serde::Deserialize`.
///
/// `#[kv(crate = path)]` gives the path of `shizuku_kv`, for crates that re-export it.
#[cfg(feature = "messagepack")]
#[proc_macro_derive(MessagePackByteDes, attributes(kv))]
pub fn derive_messagepack_byte_des(input: TokenStream) -> TokenStream {
    deserialize(input, Codec::MessagePack)
}

/// Implements `ByteSerialize`: the value in postcard's format, by the type's own
/// `serde::Serialize`. The format has no names: a reader needs the same fields in the same order.
///
/// `#[kv(crate = path)]` gives the path of `shizuku_kv`, for crates that re-export it.
#[cfg(feature = "postcard")]
#[proc_macro_derive(PostcardByteSer, attributes(kv))]
pub fn derive_postcard_byte_ser(input: TokenStream) -> TokenStream {
    serialize(input, Codec::Postcard)
}

/// Implements `ByteDeserialize`: the value from postcard's format, by the type's own
/// `serde::Deserialize`.
///
/// `#[kv(crate = path)]` gives the path of `shizuku_kv`, for crates that re-export it.
#[cfg(feature = "postcard")]
#[proc_macro_derive(PostcardByteDes, attributes(kv))]
pub fn derive_postcard_byte_des(input: TokenStream) -> TokenStream {
    deserialize(input, Codec::Postcard)
}

/// Implements `ByteSerialize`: the value as Protocol Buffers, by the type's own `prost::Message`.
///
/// `#[kv(crate = path)]` gives the path of `shizuku_kv`, for crates that re-export it.
#[cfg(feature = "protobuf")]
#[proc_macro_derive(ProtobufByteSer, attributes(kv))]
pub fn derive_protobuf_byte_ser(input: TokenStream) -> TokenStream {
    serialize(input, Codec::Protobuf)
}

/// Implements `ByteDeserialize`: the value from Protocol Buffers, by the type's own
/// `prost::Message`.
///
/// `#[kv(crate = path)]` gives the path of `shizuku_kv`, for crates that re-export it.
#[cfg(feature = "protobuf")]
#[proc_macro_derive(ProtobufByteDes, attributes(kv))]
pub fn derive_protobuf_byte_des(input: TokenStream) -> TokenStream {
    deserialize(input, Codec::Protobuf)
}

/// Implements `StaticKeyIndexedValue`, and through it `KeyValue`: one value at one key. A generic
/// type has one key too, which all of its instantiations share.
///
/// - `key = "config.database"`: the key, checked at compile time with the store's own grammar.
/// - `bucket`, `validate`, `ttl`, `codec`, `crate`: as for [`KeyValue`](macro@KeyValue).
#[proc_macro_derive(StaticKeyIndexedValue, attributes(kv))]
pub fn derive_static_key_indexed_value(input: TokenStream) -> TokenStream {
    expand::derive(input, expand::static_key::expand, fallback::static_key)
}

/// Implements `KeyValue`: many values, each with its key. It has three forms:
///
/// - `#[kv(key = "user.{tenant}.{id}")]` on `struct User`: the key consists of fields. The derive
///   generates a type `UserKey`, with the visibility of the struct and those fields. It prints,
///   parses and compares, converts from a tuple, and returns the scopes of records that share
///   leading fields (`UserKey::scope_tenant("acme")`). Each field's value is escaped, so that it
///   can be any text and never leaves its token. The fields' types have `Clone`, `Display`,
///   `FromStr`, `Debug`, `Eq`, `Hash` and `Ord`. The whole struct is stored. Listing and watching
///   all records covers every key that starts with the text before the first placeholder, so all of
///   these must be of this type. Do not keep records at `user.{id}` and others at
///   `user.{id}.settings` in the same store, or skip `KvReadError::InvalidRecordKey`.
/// - `#[kv(key)]` on one field: the printed field is the key. The whole struct is stored.
/// - `#[kv(key)]` on one field and `#[kv(value)]` on the other: a pair. Only the value is stored.
///
/// Further options of the type:
///
/// - `bucket = "users"`: `User::BUCKET`, and `User::open(&connection)`, which opens that store.
/// - `validate = path`: a function `fn(&User) -> Result<(), &'static str>`, called before every
///   write and after every read.
/// - `ttl = "30s"`: every write gives the record this time to live. A store without times to live
///   for single keys rejects the write.
/// - `codec = json`, `messagepack`, `postcard`, `protobuf`: both directions of a codec, as its two
///   derives.
/// - `key_type = AccountKey`: another name for the key type.
/// - `key_serde`: serde for the key type, as its printed text.
/// - `crate = path`: the path of `shizuku_kv`, for crates that re-export it.
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
