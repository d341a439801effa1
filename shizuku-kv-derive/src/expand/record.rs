//! `KeyValue`, in its three forms.

use proc_macro2::TokenStream;
use quote::quote;
use syn::Result;
use syn::spanned::Spanned;

use super::options::{self, Names};
use super::{Written, key_type, located, moved, root};
use crate::ast::{Field, Input};
use crate::valid::{self, Options, Record, Template};

pub(crate) fn expand(input: &Input<'_>) -> Result<Written> {
    let record = valid::record(input)?;
    let options = valid::options(input)?;
    Ok(match record {
        Record::Template(form) => template(input, &form, &options),
        Record::FieldKey(key) => field_key(input, key, &options).into(),
        Record::Pair { key, value } => pair(input, key, value, &options).into(),
    })
}

/// Expands a record that is stored as a whole, and its key type.
pub(crate) fn template(input: &Input<'_>, form: &Template<'_>, options: &Options<'_>) -> Written {
    let root = root();
    let key = valid::key_type(input);
    let key_type = key_type::impls(input, form);
    let fields = form.fields().map(|field| {
        let member = &field.member;
        key_type::part("clone", field, quote!(&self.#member))
    });
    let members = key_type::members(form);
    let body = quote! {
        type Key = #key;
        type Value = Self;

        fn kv_key(&self) -> #key {
            #key { #(#members: #fields),* }
        }

        fn kv_value(&self) -> &Self {
            self
        }

        fn from_kv(_: #key, __value: Self) -> Self {
            __value
        }

        fn kv_scope() -> #root::__private::core::result::Result<#root::WatchScope, #root::KvError> {
            #root::__private::core::result::Result::Ok(#key::scope())
        }
    };
    let record = implement(input, &body, options);
    Written { types: key_type::definition(input, form), impls: quote!(#key_type #record) }
}

/// Expands a record that is stored as a whole under one of its fields.
fn field_key(input: &Input<'_>, key: &Field<'_>, options: &Options<'_>) -> TokenStream {
    let ty = key.ty();
    let clone = cloned(key);
    let body = quote! {
        type Key = #ty;
        type Value = Self;

        fn kv_key(&self) -> #ty {
            #clone
        }

        fn kv_value(&self) -> &Self {
            self
        }

        fn from_kv(_: #ty, __value: Self) -> Self {
            __value
        }
    };
    implement(input, &body, options)
}

/// Expands a key and a value, of which only the value is stored.
fn pair(
    input: &Input<'_>,
    key: &Field<'_>,
    value: &Field<'_>,
    options: &Options<'_>,
) -> TokenStream {
    let clone = cloned(key);
    let (key, key_type) = (&key.member, key.ty());
    let (value, value_type) = (&value.member, value.ty());
    let body = quote! {
        type Key = #key_type;
        type Value = #value_type;

        fn kv_key(&self) -> #key_type {
            #clone
        }

        fn kv_value(&self) -> &#value_type {
            &self.#value
        }

        fn from_kv(__key: #key_type, __value: #value_type) -> Self {
            Self { #key: __key, #value: __value }
        }
    };
    implement(input, &body, options)
}

/// Returns an expression that clones the key field.
fn cloned(key: &Field<'_>) -> TokenStream {
    let (root, member) = (root(), &key.member);
    // The span is that of the field's type, for the error if it cannot be cloned.
    let clone = quote!(#root::__private::core::clone::Clone::clone(&self.#member));
    moved(clone, located(key.ty().span()))
}

fn implement(input: &Input<'_>, body: &TokenStream, options: &Options<'_>) -> TokenStream {
    let root = root();
    let name = &input.original.ident;
    let (generics, parameters, conditions) = input.original.generics.split_for_impl();
    let methods = options::methods(options, &Names::of_record());
    let items = options::items(input, options);
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::KeyValue for #name #parameters #conditions {
            #body
            #methods
        }

        #items
    }
}
