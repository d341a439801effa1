//! The functions of a key type that return scopes: all records, and records whose leading fields
//! have given values.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::Member;

use super::key_conversions::is_string;
use super::key_type::{format_of, print};
use super::{local, root};
use crate::ast::{Field, Input};
use crate::valid::{Template, Token};

pub(super) fn expand(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root();
    let core = quote!(#root::__private::core);
    let visibility = &input.original.vis;
    let fields = template.fields().collect::<Vec<_>>();
    // All fields including the last select a key, and not a scope.
    let scopes = (1..fields.len()).map(|leading| {
        let fields = &fields[..leading];
        let name =
            format_ident!("scope_{}", fields.last().map(|field| field.name()).unwrap_or_default());
        let arguments = fields.iter().map(|field| argument(field)).collect::<Vec<_>>();
        let types = fields.iter().map(|field| {
            let ty = field.ty();
            if is_string(ty) {
                quote!(impl #core::convert::AsRef<#core::primitive::str>)
            } else {
                quote!(#ty)
            }
        });
        let texts = fields.iter().zip(&arguments).map(|(field, argument)| {
            if is_string(field.ty()) {
                let text =
                    quote!(#core::convert::AsRef::<#core::primitive::str>::as_ref(&#argument));
                quote!(#root::__private::Escaped(#text))
            } else {
                print(field, quote!(&#argument))
            }
        });
        let format = prefix(template, leading);
        let names = fields.iter().map(|field| format!("`{}`", field.name())).collect::<Vec<_>>();
        let doc = format!(
            " The scope of the records with {}: for listing and watching them.",
            such(&names)
        );
        quote! {
            #[doc = #doc]
            #[allow(clippy::too_many_arguments)]
            #visibility fn #name(#(#arguments: #types),*) -> #root::WatchScope {
                #root::__private::scope(#core::format_args!(#format, #(#texts),*))
            }
        }
    });
    quote! {
        /// The scope of all records: for listing and watching them.
        #visibility fn scope() -> #root::WatchScope {
            #root::WatchScope::prefix(Self::PREFIX)
        }

        #(#scopes)*
    }
}

/// Returns the part before the placeholder that follows the first `leading` ones, as a format
/// string.
fn prefix(template: &Template<'_>, leading: usize) -> String {
    let mut seen = 0;
    let tokens = template.tokens.iter().take_while(|token| {
        seen += usize::from(matches!(token, Token::Field(_)));
        seen <= leading
    });
    format_of(tokens) + "."
}

fn argument(field: &Field<'_>) -> Ident {
    match &field.member {
        Member::Named(name) => name.clone(),
        Member::Unnamed(index) => local(&index.index.to_string()),
    }
}

fn such(names: &[String]) -> String {
    match names {
        [one] => format!("this {one}"),
        [all @ .., last] => format!("this {} and {last}", all.join(", ")),
        [] => String::new(),
    }
}
