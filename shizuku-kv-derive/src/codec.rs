//! The codecs, by the names that users give them.

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

    /// Its name in `codec = …`; its module and its feature are named the same.
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

    /// The codec of a name as the user wrote it.
    pub(crate) fn named(written: &Ident) -> Result<Self> {
        let name = written.to_string();
        let refuse = |message: String| Err(Error::new(written.span(), message));
        let Some(codec) = Self::ALL.into_iter().find(|codec| codec.name() == name) else {
            return refuse(match did_you_mean(&name.to_lowercase(), Self::ALL.map(Self::name)) {
                Some(near) => format!("unknown codec `{name}`, did you mean `{near}`?"),
                None => {
                    let all = Self::ALL.map(|codec| format!("`{}`", codec.name())).join(", ");
                    format!("unknown codec `{name}`; the codecs are {all}")
                }
            });
        };
        if !codec.is_there() {
            return refuse(format!(
                "the codec `{name}` is behind a feature: add `features = [\"{name}\"]` to the dependency on `shizuku-kv`"
            ));
        }
        Ok(codec)
    }

    /// What a type needs to be encoded.
    pub(crate) fn encodes(self, root: &TokenStream) -> TokenStream {
        match self {
            Self::Json | Self::MessagePack | Self::Postcard => {
                quote!(#root::__private::CanSerialize)
            }
            Self::Protobuf => quote!(#root::__private::CanEncode),
        }
    }

    /// What a type needs to be decoded.
    pub(crate) fn decodes(self, root: &TokenStream) -> TokenStream {
        match self {
            Self::Json | Self::MessagePack | Self::Postcard => {
                quote!(#root::__private::CanDeserialize)
            }
            Self::Protobuf => quote!(#root::__private::CanDecode),
        }
    }
}
