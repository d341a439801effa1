//! The traits that a codec requires of a type, with messages of this library.
//!
//! Each is another library's trait under a name of this one. If a type lacks it, rustc says what to
//! add to that type, and not which of thousands of other types have it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// serde's `Serialize`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be encoded: it does not implement serde's `Serialize`",
    label = "this type needs `Serialize`",
    note = "add `#[derive(serde::Serialize)]` to `{Self}`"
)]
pub trait CanSerialize: Serialize {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + ?Sized> CanSerialize for T {}

/// serde's `Deserialize`, for values that borrow nothing.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be decoded: it does not implement serde's `Deserialize`",
    label = "this type needs `Deserialize`",
    note = "add `#[derive(serde::Deserialize)]` to `{Self}`"
)]
pub trait CanDeserialize: DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: DeserializeOwned> CanDeserialize for T {}

/// prost's `Message`.
#[cfg(feature = "protobuf")]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be encoded: it does not implement prost's `Message`",
    label = "this type needs `prost::Message`",
    note = "add `#[derive(prost::Message)]` to `{Self}`"
)]
pub trait CanEncode: prost::Message {}

#[cfg(feature = "protobuf")]
#[diagnostic::do_not_recommend]
impl<T: prost::Message> CanEncode for T {}

/// prost's `Message`, for types with a default value to decode into.
#[cfg(feature = "protobuf")]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be decoded: it does not implement prost's `Message` and `Default`",
    label = "this type needs `prost::Message`",
    note = "add `#[derive(prost::Message)]` to `{Self}`, which writes both"
)]
pub trait CanDecode: prost::Message + Default {}

#[cfg(feature = "protobuf")]
#[diagnostic::do_not_recommend]
impl<T: prost::Message + Default> CanDecode for T {}
