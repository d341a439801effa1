//! Stand-ins for the impls of a rejected derive. They are never run. Without them, errors about
//! missing impls would follow the derive's own error (ADR 0023).

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, Fields};

use crate::ast::{Input, Shape};
use crate::beside::is_derived_too;
use crate::expand::{Written, path, root};
use crate::valid;

pub(crate) fn serialize(input: &Input<'_>) -> Written {
    // With `codec` the derive of the key writes the impl.
    if input.attrs.names_codec { Written::default() } else { to_bytes(input).into() }
}

fn to_bytes(input: &Input<'_>) -> TokenStream {
    let root = root();
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::ByteSerialize for #name #parameters #conditions {
            fn to_bytes(
                &self,
            ) -> #root::__private::core::result::Result<
                #root::__private::Bytes,
                #root::EncodeError,
            > {
                #root::__private::core::unreachable!()
            }
        }
    }
}

pub(crate) fn deserialize(input: &Input<'_>) -> Written {
    if input.attrs.names_codec { Written::default() } else { from_bytes(input).into() }
}

fn from_bytes(input: &Input<'_>) -> TokenStream {
    let root = root();
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

pub(crate) fn static_key(input: &Input<'_>) -> Written {
    let is_for_the_other = has_key_field(input) || is_template(input) == Some(true);
    if is_for_the_other && is_derived_too("KeyValue") {
        return Written::default();
    }
    let root = root();
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
    let items = items(input);
    let impls = quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::StaticKeyIndexedValue for #name #parameters #conditions {
            fn key() -> #root::__private::std::string::String {
                #root::__private::core::unreachable!()
            }
        }

        #items
    };
    impls.into()
}

/// Returns `Some(true)` if the key in the type's attribute has placeholders, and `None` if the
/// attribute has no key.
fn is_template(input: &Input<'_>) -> Option<bool> {
    input.attrs.key.as_ref().map(|key| key.value().contains(['{', '}']))
}

fn has_key_field(input: &Input<'_>) -> bool {
    match &input.shape {
        Shape::Struct(fields) => fields.iter().any(|field| field.role.is_some()),
        Shape::Enum | Shape::Union => false,
    }
}

/// Returns a type that does not exist, on purpose. After an error of a macro, rustc reports neither
/// unknown names nor their uses.
fn unknown(root: &TokenStream) -> TokenStream {
    quote!(#root::__private::Unknown)
}

pub(crate) fn record(input: &Input<'_>) -> Written {
    let is_for_the_other = !has_key_field(input) && is_template(input) == Some(false);
    let has_key_type = input.attrs.key.is_some() || input.attrs.key_type.is_some();
    let types = if has_key_type { key_type(input) } else { TokenStream::new() };
    if is_for_the_other && is_derived_too("StaticKeyIndexedValue") {
        return Written { types, impls: TokenStream::new() };
    }
    let root = root();
    let unknown = unknown(&root);
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
    let items = items(input);
    let impls = quote! {
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
    };
    Written { types, impls }
}

fn key_type(input: &Input<'_>) -> TokenStream {
    let root = path(input);
    let unknown = unknown(&root);
    let (visibility, key) = (&input.original.vis, valid::key_type(input));
    // The constructor of a tuple struct is a value too.
    let is_tuple = matches!(
        &input.original.data,
        Data::Struct(data) if matches!(data.fields, Fields::Unnamed(_))
    );
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
}

/// Returns stand-ins for the items that the options would have generated.
fn items(input: &Input<'_>) -> TokenStream {
    let root = root();
    let (name, (generics, parameters, conditions)) =
        (&input.original.ident, input.original.generics.split_for_impl());
    let codec = input.attrs.names_codec.then(|| {
        let (to_bytes, from_bytes) = (to_bytes(input), from_bytes(input));
        quote!(#to_bytes #from_bytes)
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
