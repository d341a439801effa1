//! The codecs, and the names by which users select them.

use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::{Error, Result};

use crate::suggest::did_you_mean;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Json,
    MessagePack,
    Postcard,
    Protobuf,
}

impl Codec {
    const ALL: [Self; 4] = [Self::Json, Self::MessagePack, Self::Postcard, Self::Protobuf];

    /// Returns the codec's name in `codec = …`. Its module and its feature have the same name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::MessagePack => "messagepack",
            Self::Postcard => "postcard",
            Self::Protobuf => "protobuf",
        }
    }

    fn is_there(self) -> bool {
        match self {
            Self::Json => true,
            Self::MessagePack => cfg!(feature = "messagepack"),
            Self::Postcard => cfg!(feature = "postcard"),
            Self::Protobuf => cfg!(feature = "protobuf"),
        }
    }

    /// Returns the codec that the user named.
    pub(crate) fn named(written: &Ident) -> Result<Self> {
        let name = written.to_string();
        let reject = |message: String| Err(Error::new(written.span(), message));
        let Some(codec) = Self::ALL.into_iter().find(|codec| codec.name() == name) else {
            return reject(match did_you_mean(&name, Self::ALL.map(Self::name)) {
                Some(near) => format!("unknown codec `{name}`, did you mean `{near}`?"),
                None => {
                    let all = Self::ALL.map(|codec| format!("`{}`", codec.name())).join(", ");
                    format!("unknown codec `{name}`; the codecs are {all}")
                }
            });
        };
        if !codec.is_there() {
            return reject(format!(
                "the codec `{name}` is behind a feature: add `features = [\"{name}\"]` to the dependency on `shizuku-kv`"
            ));
        }
        Ok(codec)
    }

    /// Returns the trait of types that can be encoded.
    pub(crate) fn encodes(self, root: &TokenStream) -> TokenStream {
        match self {
            Self::Json | Self::MessagePack | Self::Postcard => {
                quote!(#root::__private::CanSerialize)
            }
            Self::Protobuf => quote!(#root::__private::CanEncode),
        }
    }

    /// Returns the trait of types that can be decoded.
    pub(crate) fn decodes(self, root: &TokenStream) -> TokenStream {
        match self {
            Self::Json | Self::MessagePack | Self::Postcard => {
                quote!(#root::__private::CanDeserialize)
            }
            Self::Protobuf => quote!(#root::__private::CanDecode),
        }
    }
}
