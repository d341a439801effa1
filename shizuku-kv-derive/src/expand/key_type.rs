//! The key type of a template.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::Member;
use syn::ext::IdentExt;
use syn::spanned::Spanned;

use super::{key_conversions, key_scopes, key_traits, local, located, moved, path, root};
use crate::ast::{Field, Input};
use crate::valid::{Template, Token, key_type as name};

/// Returns the fields of the key type, in the order of the template. They have the names of the
/// struct's fields, and new numbers in a tuple struct.
pub(crate) fn members(template: &Template<'_>) -> Vec<Member> {
    template
        .fields()
        .enumerate()
        .map(|(index, field)| match &field.member {
            Member::Named(ident) => Member::Named(ident.clone()),
            Member::Unnamed(_) => Member::from(index),
        })
        .collect()
}

pub(crate) fn impls(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let functions = functions(input, template);
    let traits = key_traits::expand(input, template);
    let printing = printing(input, template);
    let parsing = parsing(input, template);
    let conversions = key_conversions::expand(input, template);
    quote!(#functions #traits #printing #parsing #conversions)
}

/// Returns a call of one ability of a field in a key. Its span is that of the field's type, for the
/// error if the type lacks the ability. These errors are equal for every use, so that rustc shows
/// one of them.
pub(crate) fn part(what: &str, field: &Field<'_>, arguments: TokenStream) -> TokenStream {
    let (root, method) = (root(), local(what));
    let at = located(field.ty().span());
    moved(quote!(#root::__private::KeyPart::#method(#arguments)), at)
}

/// Defines the key type.
///
/// A macro cannot see whether another item has the same name. The error of rustc (E0428, E0255)
/// does not mention the option that gives another name, but it names the macro that wrote the item.
/// So a macro writes the item whose name says what to do.
pub(crate) fn definition(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let (record, key, visibility) = (&input.original.ident, name(input), &input.original.vis);
    let literal = &template.literal;
    let types = template.fields().map(|field| field.ty());
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
    // The span is that of the type's name, for the error if another type has the name of the key
    // type. A path of the user keeps its span, for the error if it leads nowhere.
    let visibility = moved(visibility.to_token_stream(), at);
    let header = quote_spanned!(at=> #visibility #key #fields);
    let root = path(input);
    let root = if input.attrs.root.is_none() { moved(root, at) } else { root };
    quote_spanned! {at=>
        #root::__private::if_this_name_is_taken_give_another_with_key_type! {
            #[doc = #doc]
            #[allow(deprecated, non_camel_case_types, private_interfaces)]
            #header
        }
    }
}

fn functions(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root();
    let core = quote!(#root::__private::core);
    let (key, visibility) = (name(input), &input.original.vis);
    let (literal, prefix) = (&template.literal, template.prefix());
    let scopes = key_scopes::expand(input, template);
    quote! {
        #[automatically_derived]
        #[allow(dead_code, deprecated)]
        impl #key {
            /// The template of every key.
            #visibility const TEMPLATE: &'static #core::primitive::str = #literal;
            /// The literal beginning of every key.
            #visibility const PREFIX: &'static #core::primitive::str = #prefix;

            #scopes
        }
    }
}

fn printing(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root();
    let core = quote!(#root::__private::core);
    let key = name(input);
    let f = local("f");
    let format = format_of(&template.tokens);
    let members = members(template);
    let texts =
        template.fields().zip(&members).map(|(field, member)| print(field, quote!(&self.#member)));
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

/// Returns a call that prints a field. Its span is that of the field's type, for the error if it
/// does not print.
pub(super) fn print(field: &Field<'_>, argument: TokenStream) -> TokenStream {
    let (root, at) = (root(), located(field.ty().span()));
    moved(quote!(#root::__private::print(#argument)), at)
}

/// Returns a format string with an argument for each field.
pub(super) fn format_of<'t>(tokens: impl IntoIterator<Item = &'t Token<'t>>) -> String {
    let tokens = tokens.into_iter().map(|token| match token {
        Token::Literal(literal) => literal.as_str(),
        Token::Field(_) => "{}",
    });
    tokens.collect::<Vec<_>>().join(".")
}

fn parsing(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root();
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
                // The span is that of the field's type, for the error if it does not parse.
                let prefix = moved(quote!(#root::__private::KeyTokens::field), located(ty.span()));
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
