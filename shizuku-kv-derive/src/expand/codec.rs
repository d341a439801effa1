//! `ByteSerialize` and `ByteDeserialize`, implemented with one of the codecs.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{GenericParam, Generics, Result, parse_quote};

use super::{Written, located, moved, root};
use crate::ast::{Input, Shape};
use crate::codec::Codec;
use crate::valid::{self, Directions};

/// Expands the derive of the writing direction.
pub(crate) fn serialize(input: &Input<'_>, codec: Codec) -> Result<Written> {
    storable(input)?;
    valid::read_back(input, codec, Directions::Encode)?;
    Ok(to_bytes(input, codec, Span::call_site(), is_record(input)).into())
}

/// Expands the derive of the reading direction.
pub(crate) fn deserialize(input: &Input<'_>, codec: Codec) -> Result<Written> {
    storable(input)?;
    valid::read_back(input, codec, Directions::Decode)?;
    Ok(from_bytes(input, codec, Span::call_site(), is_record(input)).into())
}

/// Expands both directions, for `codec = …`.
pub(super) fn both(input: &Input<'_>, codec: Codec) -> TokenStream {
    // The span is that of the option, for the error if the type has an impl of its own.
    let at = input.attrs.codec.as_ref().map_or_else(Span::call_site, |codec| located(codec.span()));
    let (to_bytes, from_bytes) =
        (to_bytes(input, codec, at, None), from_bytes(input, codec, at, None));
    quote!(#to_bytes #from_bytes)
}

/// Returns a check that the type is a record if it has options of one. Otherwise these options
/// would have no effect, without an error.
fn is_record(input: &Input<'_>) -> Option<TokenStream> {
    let root = root();
    let at = located(input.attrs.of_a_record?);
    Some(moved(quote!(#root::__private::is_record::<Self>();), at))
}

fn storable(input: &Input<'_>) -> Result<()> {
    valid::one_codec(input)?;
    match input.shape {
        Shape::Union => Err(valid::union(input)),
        Shape::Struct(_) | Shape::Enum => Ok(()),
    }
}

fn to_bytes(input: &Input<'_>, codec: Codec, at: Span, check: Option<TokenStream>) -> TokenStream {
    let root = root();
    let name = &input.original.ident;
    let bounded = with_bound(&input.original.generics, &codec.encodes(&root));
    let (generics, _, conditions) = bounded.split_for_impl();
    let (_, parameters, _) = input.original.generics.split_for_impl();
    // The span is that of the type's name, for the error if the codec cannot encode the type.
    let module = module(codec);
    let encode =
        moved(quote!(#root::__private::#module::to_bytes::<Self>(self)), located(name.span()));
    let header =
        moved(quote!(impl #generics #root::ByteSerialize for #name #parameters #conditions), at);
    quote_spanned! {at=>
        #[automatically_derived]
        #[allow(deprecated)]
        #header {
            fn to_bytes(
                &self,
            ) -> #root::__private::core::result::Result<
                #root::__private::Bytes,
                #root::EncodeError,
            > {
                #check
                #encode
            }

            fn __read_back(
                __bytes: &#root::__private::Bytes,
            ) -> #root::__private::core::option::Option<
                #root::__private::core::result::Result<Self, #root::DecodeError>,
            > {
                #[allow(unused_imports)]
                use #root::__private::{Reads as _, ReadsNothing as _};
                (&#root::__private::ReadBack::<Self>::OF).__read(__bytes)
            }
        }
    }
}

fn from_bytes(
    input: &Input<'_>,
    codec: Codec,
    at: Span,
    check: Option<TokenStream>,
) -> TokenStream {
    let root = root();
    let name = &input.original.ident;
    let bounded = with_bound(&input.original.generics, &codec.decodes(&root));
    let (generics, _, conditions) = bounded.split_for_impl();
    let (_, parameters, _) = input.original.generics.split_for_impl();
    // The span is that of the type's name, for the error if the codec cannot decode the type.
    let module = module(codec);
    let decode =
        moved(quote!(#root::__private::#module::from_bytes::<Self>(__bytes)), located(name.span()));
    let header =
        moved(quote!(impl #generics #root::ByteDeserialize for #name #parameters #conditions), at);
    quote_spanned! {at=>
        #[automatically_derived]
        #[allow(deprecated)]
        #header {
            fn from_bytes(
                __bytes: &#root::__private::Bytes,
            ) -> #root::__private::core::result::Result<Self, #root::DecodeError> {
                #check
                #decode
            }
        }
    }
}

fn module(codec: Codec) -> Ident {
    format_ident!("{}", codec.name())
}

/// Adds the codec's bound on the type itself to the generics, if the type depends on a parameter.
/// Otherwise rustc would reject the bound before it reports anything else.
fn with_bound(generics: &Generics, bound: &TokenStream) -> Generics {
    let mut generics = generics.clone();
    if generics.params.iter().any(|parameter| matches!(parameter, GenericParam::Type(_))) {
        generics.make_where_clause().predicates.push(parse_quote!(Self: #bound));
    }
    generics
}
