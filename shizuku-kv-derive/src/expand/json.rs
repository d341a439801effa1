//! `JsonByteSer` and `JsonByteDes`.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{GenericParam, Generics, Result, parse_quote};

use super::root;
use crate::ast::Input;

pub(crate) fn serialize(input: &Input<'_>) -> Result<TokenStream> {
    let root = root(input);
    let name = &input.original.ident;
    let bound = quote!(#root::__private::Serialize);
    let bounded = with_bound(&input.original.generics, &bound);
    let (generics, _, conditions) = bounded.split_for_impl();
    let (_, parameters, _) = input.original.generics.split_for_impl();
    // At the type's name, for the error when it has no `Serialize`.
    let encode = quote_spanned!(located(name.span())=> #root::__private::to_bytes::<Self>);
    Ok(quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::ByteSerialize for #name #parameters #conditions {
            fn to_bytes(&self) -> #root::__private::core::result::Result<#root::__private::Bytes, #root::EncodeError> {
                #encode(self)
            }
        }
    })
}

pub(crate) fn deserialize(input: &Input<'_>) -> Result<TokenStream> {
    let root = root(input);
    let name = &input.original.ident;
    let bound = quote!(#root::__private::DeserializeOwned);
    let bounded = with_bound(&input.original.generics, &bound);
    let (generics, _, conditions) = bounded.split_for_impl();
    let (_, parameters, _) = input.original.generics.split_for_impl();
    // At the type's name, for the error when it has no `Deserialize`.
    let decode = quote_spanned!(located(name.span())=> #root::__private::from_bytes::<Self>);
    Ok(quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::ByteDeserialize for #name #parameters #conditions {
            fn from_bytes(
                bytes: &#root::__private::Bytes,
            ) -> #root::__private::core::result::Result<Self, #root::DecodeError> {
                #decode(bytes)
            }
        }
    })
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

/// The user's place with the macro's scope.
fn located(span: Span) -> Span {
    span.resolved_at(Span::call_site())
}
