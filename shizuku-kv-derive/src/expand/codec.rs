//! `ByteSerialize` and `ByteDeserialize`, by one of the codecs.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{GenericParam, Generics, Result, parse_quote};

use super::{located, moved, root};
use crate::ast::{Input, Shape};
use crate::codec::Codec;
use crate::valid::{self, Directions};

/// The derive of one direction.
pub(crate) fn serialize(input: &Input<'_>, codec: Codec) -> Result<TokenStream> {
    storable(input)?;
    valid::read_back(input, codec, Directions::Encode)?;
    Ok(to_bytes(input, codec, Span::call_site(), is_record(input)))
}

/// The derive of the other direction.
pub(crate) fn deserialize(input: &Input<'_>, codec: Codec) -> Result<TokenStream> {
    storable(input)?;
    valid::read_back(input, codec, Directions::Decode)?;
    Ok(from_bytes(input, codec, Span::call_site(), is_record(input)))
}

/// Both directions, for `codec = …`.
pub(super) fn both(input: &Input<'_>, codec: Codec) -> TokenStream {
    // At the option, for the error when the codec's derive is there too.
    let at = input.attrs.codec.as_ref().map_or_else(Span::call_site, |codec| located(codec.span()));
    let (to_bytes, from_bytes) =
        (to_bytes(input, codec, at, None), from_bytes(input, codec, at, None));
    quote!(#to_bytes #from_bytes)
}

/// Where options are about a record, that the type is one: else they would mean nothing, and nobody would say so.
fn is_record(input: &Input<'_>) -> Option<TokenStream> {
    let root = root(input);
    let at = located(input.attrs.of_a_record?);
    Some(moved(quote!(#root::__private::is_record::<Self>();), at))
}

fn storable(input: &Input<'_>) -> Result<()> {
    match input.shape {
        Shape::Union => Err(valid::union(input)),
        Shape::Struct(_) | Shape::Enum => Ok(()),
    }
}

fn to_bytes(input: &Input<'_>, codec: Codec, at: Span, check: Option<TokenStream>) -> TokenStream {
    let root = root(input);
    let name = &input.original.ident;
    let bounded = with_bound(&input.original.generics, &codec.encodes(&root));
    let (generics, _, conditions) = bounded.split_for_impl();
    let (_, parameters, _) = input.original.generics.split_for_impl();
    // At the type's name, for the error when the codec cannot encode it.
    let module = module(codec);
    let encode =
        moved(quote!(#root::__private::#module::to_bytes::<Self>(self)), located(name.span()));
    let header =
        moved(quote!(impl #generics #root::ByteSerialize for #name #parameters #conditions), at);
    quote_spanned! {at=>
        #[automatically_derived]
        #[allow(deprecated)]
        #header {
            fn to_bytes(&self) -> #root::__private::core::result::Result<#root::__private::Bytes, #root::EncodeError> {
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
    let root = root(input);
    let name = &input.original.ident;
    let bounded = with_bound(&input.original.generics, &codec.decodes(&root));
    let (generics, _, conditions) = bounded.split_for_impl();
    let (_, parameters, _) = input.original.generics.split_for_impl();
    // At the type's name, for the error when the codec cannot decode it.
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

/// The generics with the codec's bound on the type itself, where it depends on a parameter. Where it does not, the
/// bound would be refused before anything else could be said.
fn with_bound(generics: &Generics, bound: &TokenStream) -> Generics {
    let mut generics = generics.clone();
    if generics.params.iter().any(|parameter| matches!(parameter, GenericParam::Type(_))) {
        generics.make_where_clause().predicates.push(parse_quote!(Self: #bound));
    }
    generics
}
