//! `KeyValue`, in its three forms.

use proc_macro2::TokenStream;
use quote::quote;
use syn::Result;

use super::{key_type, root};
use crate::ast::{Field, Input};
use crate::valid::{self, Record, Template};

pub(crate) fn expand(input: &Input<'_>) -> Result<TokenStream> {
    Ok(match valid::record(input)? {
        Record::Template(form) => template(input, &form),
        Record::FieldKey(key) => field_key(input, key),
        Record::Pair { key, value } => pair(input, key, value),
    })
}

/// The key type, and a record that is stored as a whole under it.
fn template(input: &Input<'_>, form: &Template<'_>) -> TokenStream {
    let root = root(input);
    let key = valid::key_type(input);
    let key_type = key_type::expand(input, form);
    let fields = form.fields().map(|field| {
        let member = &field.member;
        quote!(#root::__private::core::clone::Clone::clone(&self.#member))
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

        fn from_kv(_: #key, value: Self) -> Self {
            value
        }

        fn kv_scope() -> #root::__private::core::result::Result<#root::WatchScope, #root::KvError> {
            #root::__private::core::result::Result::Ok(#root::WatchScope::prefix(#key::PREFIX))
        }
    };
    let record = implement(input, &body);
    quote!(#key_type #record)
}

/// A record that is stored as a whole under one of its fields.
fn field_key(input: &Input<'_>, key: &Field<'_>) -> TokenStream {
    let root = root(input);
    let (member, ty) = (&key.member, key.ty());
    let body = quote! {
        type Key = #ty;
        type Value = Self;

        fn kv_key(&self) -> #ty {
            #root::__private::core::clone::Clone::clone(&self.#member)
        }

        fn kv_value(&self) -> &Self {
            self
        }

        fn from_kv(_: #ty, value: Self) -> Self {
            value
        }
    };
    implement(input, &body)
}

/// A key and a value, of which only the value is stored.
fn pair(input: &Input<'_>, key: &Field<'_>, value: &Field<'_>) -> TokenStream {
    let root = root(input);
    let (key, key_type) = (&key.member, key.ty());
    let (value, value_type) = (&value.member, value.ty());
    let body = quote! {
        type Key = #key_type;
        type Value = #value_type;

        fn kv_key(&self) -> #key_type {
            #root::__private::core::clone::Clone::clone(&self.#key)
        }

        fn kv_value(&self) -> &#value_type {
            &self.#value
        }

        fn from_kv(key: #key_type, value: #value_type) -> Self {
            Self { #key: key, #value: value }
        }
    };
    implement(input, &body)
}

fn implement(input: &Input<'_>, body: &TokenStream) -> TokenStream {
    let root = root(input);
    let name = &input.original.ident;
    let (generics, parameters, conditions) = input.original.generics.split_for_impl();
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::KeyValue for #name #parameters #conditions {
            #body
        }
    }
}
