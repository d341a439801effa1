//! What is written where a check failed: impls that are never run, so that the error is not followed by others about
//! what is missing.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, Fields};

use crate::ast::Input;
use crate::expand::root;
use crate::valid;

pub(crate) fn serialize(input: &Input<'_>) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
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

pub(crate) fn deserialize(input: &Input<'_>) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
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

pub(crate) fn static_key(input: &Input<'_>) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
    let items = items(input);
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::StaticKeyIndexedValue for #name #parameters #conditions {
            fn key() -> #root::__private::std::string::String {
                #root::__private::core::unreachable!()
            }
        }

        #items
    }
}

pub(crate) fn record(input: &Input<'_>) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
    // There is no such type, on purpose: after an error of a macro rustc says nothing of names that it does not find,
    // nor of what is done with them.
    let unknown = quote!(#root::__private::Unknown);
    let key = (input.attrs.key.is_some() || input.attrs.key_type.is_some()).then(|| {
        let (visibility, key) = (&input.original.vis, valid::key_type(input));
        // What a tuple struct is made with is a value, too.
        let is_tuple =
            matches!(&input.original.data, Data::Struct(data) if matches!(data.fields, Fields::Unnamed(_)));
        let constructor = is_tuple.then(|| {
            quote! {
                #[allow(dead_code, missing_docs, non_upper_case_globals)]
                #visibility const #key: #unknown = #root::__private::core::unreachable!();
            }
        });
        quote! {
            #[allow(dead_code, missing_docs, non_camel_case_types)]
            #visibility type #key = #unknown;

            #constructor
        }
    });
    let items = items(input);
    quote! {
        #key

        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::KeyValue for #name #parameters #conditions {
            type Key = #unknown;
            type Value = #unknown;

            fn kv_key(&self) -> #unknown {
                #root::__private::core::unreachable!()
            }

            fn kv_value(&self) -> &#unknown {
                #root::__private::core::unreachable!()
            }

            fn from_kv(_: #unknown, _: #unknown) -> Self {
                #root::__private::core::unreachable!()
            }
        }

        #items
    }
}

/// What the options would have made.
fn items(input: &Input<'_>) -> TokenStream {
    let root = root(input);
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
    let codec = input.attrs.names_codec.then(|| {
        let (serialize, deserialize) = (serialize(input), deserialize(input));
        quote!(#serialize #deserialize)
    });
    let bucket = input.attrs.names_bucket.then(|| {
        let visibility = &input.original.vis;
        quote! {
            #[automatically_derived]
            #[allow(dead_code, deprecated, missing_docs)]
            impl #generics #name #parameters #conditions {
                #visibility const BUCKET: &'static #root::__private::core::primitive::str = "";

                #visibility async fn open(
                    _: &dyn #root::Connection,
                ) -> #root::__private::core::result::Result<#root::Store, #root::KvError> {
                    #root::__private::core::unreachable!()
                }
            }
        }
    });
    quote!(#codec #bucket)
}
