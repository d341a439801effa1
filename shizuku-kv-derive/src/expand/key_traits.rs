//! The standard traits of a key type.
//!
//! `#[derive]` is not used for two reasons. Each of the standard derives would report on its own
//! that a field's type lacks its trait. The definition of the key type would need the library's
//! path.

use proc_macro2::TokenStream;
use quote::quote;
use syn::Member;

use super::key_type::{members, part};
use super::{local, root};
use crate::ast::Input;
use crate::valid::{Template, key_type};

pub(super) fn expand(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root();
    let core = quote!(#root::__private::core);
    let (key, name) = (key_type(input), key_type(input).to_string());
    let members = members(template);
    let (other, f, state) = (local("other"), local("f"), local("state"));
    let parts = |what: &str, rest: fn(&Member) -> TokenStream| {
        template
            .fields()
            .zip(&members)
            .map(|(field, member)| {
                let rest = rest(member);
                part(what, field, quote!(&self.#member #rest))
            })
            .collect::<Vec<_>>()
    };
    let none = |_: &Member| TokenStream::new();
    let with_other = |member: &Member| {
        let other = local("other");
        quote!(, &#other.#member)
    };
    let clones = parts("clone", none);
    let equal = parts("eq", with_other);
    let orders = parts("cmp", with_other);
    let hashes = parts("hash", |_| {
        let state = local("state");
        quote!(, #state)
    });
    let shown = parts("debug", none);
    let is_named = members.iter().all(|member| matches!(member, Member::Named(_)));
    let (debug, shown) = if is_named {
        let names = template.fields().map(|field| field.name());
        (quote!(debug_struct), quote!(#(.field(#names, #shown))*))
    } else {
        (quote!(debug_tuple), quote!(#(.field(#shown))*))
    };
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::fmt::Debug for #key {
            fn fmt(&self, #f: &mut #core::fmt::Formatter<'_>) -> #core::fmt::Result {
                #f.#debug(#name)#shown.finish()
            }
        }

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::clone::Clone for #key {
            fn clone(&self) -> Self {
                Self { #(#members: #clones),* }
            }
        }

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::cmp::PartialEq for #key {
            fn eq(&self, #other: &Self) -> #core::primitive::bool {
                true #(&& #equal)*
            }
        }

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::cmp::Eq for #key {}

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::cmp::PartialOrd for #key {
            fn partial_cmp(&self, #other: &Self) -> #core::option::Option<#core::cmp::Ordering> {
                #core::option::Option::Some(#core::cmp::Ord::cmp(self, #other))
            }
        }

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::cmp::Ord for #key {
            fn cmp(&self, #other: &Self) -> #core::cmp::Ordering {
                #core::cmp::Ordering::Equal #(.then_with(|| #orders))*
            }
        }

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::hash::Hash for #key {
            fn hash<__H: #core::hash::Hasher>(&self, #state: &mut __H) {
                #(#hashes;)*
            }
        }
    }
}
