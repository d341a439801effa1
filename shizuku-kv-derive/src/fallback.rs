//! What is written where a check failed: impls that are never run, so that the error is not followed by others about
//! what is missing.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::DeriveInput;
use syn::ext::IdentExt;

use crate::attr;
use crate::expand::default_root;

pub(crate) fn json_serialize(input: &DeriveInput) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) = (&input.ident, input.generics.split_for_impl());
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::ByteSerialize for #name #parameters #conditions {
            fn to_bytes(&self) -> #root::__private::core::result::Result<#root::__private::Bytes, #root::EncodeError> {
                #root::__private::core::unreachable!()
            }
        }
    }
}

pub(crate) fn json_deserialize(input: &DeriveInput) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) = (&input.ident, input.generics.split_for_impl());
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::ByteDeserialize for #name #parameters #conditions {
            fn from_bytes(
                _: &#root::__private::Bytes,
            ) -> #root::__private::core::result::Result<Self, #root::DecodeError> {
                #root::__private::core::unreachable!()
            }
        }
    }
}

pub(crate) fn static_key(input: &DeriveInput) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) = (&input.ident, input.generics.split_for_impl());
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::StaticKeyIndexedValue for #name #parameters #conditions {
            fn key() -> #root::__private::std::string::String {
                #root::__private::core::unreachable!()
            }
        }
    }
}

pub(crate) fn record(input: &DeriveInput) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) = (&input.ident, input.generics.split_for_impl());
    let has_template = input.attrs.iter().any(attr::is_kv);
    let key = has_template.then(|| {
        let (visibility, key) = (&input.vis, format_ident!("{}Key", name.unraw()));
        quote! {
            #[allow(dead_code, missing_docs)]
            #visibility type #key = #root::__private::std::string::String;
        }
    });
    quote! {
        #key

        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::KeyValue for #name #parameters #conditions {
            type Key = #root::__private::std::string::String;
            type Value = Self;

            fn kv_key(&self) -> Self::Key {
                #root::__private::core::unreachable!()
            }

            fn kv_value(&self) -> &Self {
                self
            }

            fn from_kv(_: Self::Key, value: Self) -> Self {
                value
            }
        }
    }
}

/// Where the library is, if that much could be parsed.
fn root(input: &DeriveInput) -> TokenStream {
    attr::container(&input.attrs)
        .ok()
        .and_then(|attrs| attrs.root)
        .map_or_else(default_root, |root| quote!(#root))
}
