//! The key type of a template.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::Member;
use syn::ext::IdentExt;
use syn::spanned::Spanned;

use super::{key_conversions, key_scopes, local, located, moved, root};
use crate::ast::Input;
use crate::valid::{Template, Token, key_type as name};

/// The fields of the key type, in the order of the template: named as in the struct, numbered anew in a tuple struct.
pub(crate) fn members(template: &Template<'_>) -> Vec<Member> {
    template
        .fields()
        .enumerate()
        .map(|(place, field)| match &field.member {
            Member::Named(ident) => Member::Named(ident.clone()),
            Member::Unnamed(_) => Member::from(place),
        })
        .collect()
}

pub(crate) fn expand(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let definition = definition(input, template);
    let printing = printing(input, template);
    let parsing = parsing(input, template);
    let conversions = key_conversions::expand(input, template);
    quote!(#definition #printing #parsing #conversions)
}

fn definition(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let (record, key, visibility) = (&input.original.ident, name(input), &input.original.vis);
    let (literal, prefix) = (&template.literal, template.prefix());
    let types = template.fields().map(|field| field.ty());
    let scopes = key_scopes::expand(input, template);
    let doc = format!(" The key of a [`{}`]: `{literal}`.", record.unraw());
    let docs = template.fields().map(|field| format!(" The record's `{}`.", field.name()));
    let at = located(record.span());
    let is_named = members(template).iter().all(|member| matches!(member, Member::Named(_)));
    let fields = if is_named {
        let members = members(template);
        quote_spanned!(at=> { #(#[doc = #docs] #visibility #members: #types,)* })
    } else {
        quote_spanned!(at=> (#(#[doc = #docs] #visibility #types,)*);)
    };
    // At the type's name, for the error when another type has the name of the key type.
    let header = moved(visibility.to_token_stream(), at);
    let header = quote_spanned!(at=> #header struct #key #fields);
    let core = quote!(#root::__private::core);
    quote! {
        #[doc = #doc]
        #[allow(deprecated, non_camel_case_types, private_interfaces)]
        #[#core::prelude::v1::derive(
            #core::fmt::Debug,
            #core::clone::Clone,
            #core::cmp::PartialEq,
            #core::cmp::Eq,
            #core::hash::Hash,
            #core::cmp::PartialOrd,
            #core::cmp::Ord,
        )]
        #header

        #[automatically_derived]
        #[allow(dead_code, deprecated)]
        impl #key {
            /// What a key is made of.
            #visibility const TEMPLATE: &'static #core::primitive::str = #literal;
            /// What every key starts with.
            #visibility const PREFIX: &'static #core::primitive::str = #prefix;

            #scopes
        }
    }
}

fn printing(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let core = quote!(#root::__private::core);
    let key = name(input);
    let f = local("f");
    let format = format_of(&template.tokens);
    let members = members(template);
    let texts = template.fields().zip(&members).map(|(field, member)| {
        // At the field's type, for the error when it does not print.
        let span = field.ty().span();
        let print = moved(quote!(#root::__private::print), span);
        quote_spanned!(located(span)=> #print(&self.#member))
    });
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::fmt::Display for #key {
            fn fmt(&self, #f: &mut #core::fmt::Formatter<'_>) -> #core::fmt::Result {
                #core::write!(#f, #format, #(#texts),*)
            }
        }
    }
}

/// A format string with an argument for each field.
pub(super) fn format_of<'t>(tokens: impl IntoIterator<Item = &'t Token<'t>>) -> String {
    let tokens = tokens.into_iter().map(|token| match token {
        Token::Literal(literal) => literal.as_str(),
        Token::Field(_) => "{}",
    });
    tokens.collect::<Vec<_>>().join(".")
}

fn parsing(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let core = quote!(#root::__private::core);
    let key = name(input);
    let (text, tokens) = (local("text"), local("tokens"));
    let mut variables = Vec::new();
    let parts = template
        .tokens
        .iter()
        .map(|token| match token {
            Token::Literal(literal) => {
                quote!(#root::__private::KeyTokens::literal(&mut #tokens, #literal)?;)
            }
            Token::Field(field) => {
                let variable = local(&format!("field_{}", variables.len()));
                let (ty, name) = (field.ty(), field.name());
                variables.push(variable.clone());
                // At the field's type, for the error when it does not parse.
                let prefix = moved(quote!(#root::__private::KeyTokens::field), ty.span());
                let parse = quote_spanned!(located(ty.span())=> #prefix::<#ty>);
                quote!(let #variable = #parse(&mut #tokens, #name)?;)
            }
        })
        .collect::<Vec<_>>();
    let members = members(template);
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::str::FromStr for #key {
            type Err = #root::ParseKeyError;

            fn from_str(
                #text: &#core::primitive::str,
            ) -> #core::result::Result<Self, #root::ParseKeyError> {
                let mut #tokens = #root::__private::KeyTokens::new(Self::TEMPLATE, #text);
                #(#parts)*
                #root::__private::KeyTokens::finish(#tokens, Self { #(#members: #variables),* })
            }
        }
    }
}
