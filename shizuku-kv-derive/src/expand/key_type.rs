//! The key type of a template.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::Member;
use syn::ext::IdentExt;
use syn::spanned::Spanned;

use super::root;
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
    let conversions = conversions(input, template);
    quote!(#definition #printing #parsing #conversions)
}

fn definition(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let (record, key, visibility) = (&input.original.ident, name(input), &input.original.vis);
    let (literal, prefix) = (&template.literal, template.prefix());
    let types = template.fields().map(|field| field.ty());
    let doc = format!("The key of a [`{}`]: `{literal}`.", record.unraw());
    let docs = template.fields().map(|field| format!("The record's `{}`.", field.name()));
    let is_named = members(template).iter().all(|member| matches!(member, Member::Named(_)));
    let fields = if is_named {
        let members = members(template);
        quote!({ #(#[doc = #docs] pub #members: #types,)* })
    } else {
        quote!((#(#[doc = #docs] pub #types,)*);)
    };
    let core = quote!(#root::__private::core);
    quote! {
        #[doc = #doc]
        #[allow(deprecated)]
        #[#core::prelude::v1::derive(
            #core::fmt::Debug,
            #core::clone::Clone,
            #core::cmp::PartialEq,
            #core::cmp::Eq,
            #core::hash::Hash,
            #core::cmp::PartialOrd,
            #core::cmp::Ord,
        )]
        #visibility struct #key #fields

        #[automatically_derived]
        #[allow(dead_code, deprecated)]
        impl #key {
            /// What a key is made of.
            pub const TEMPLATE: &'static #core::primitive::str = #literal;
            /// What every key starts with.
            pub const PREFIX: &'static #core::primitive::str = #prefix;
        }
    }
}

fn printing(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let core = quote!(#root::__private::core);
    let key = name(input);
    let mut members = members(template).into_iter();
    let mut literal = String::new();
    let mut parts = Vec::new();
    for (place, token) in template.tokens.iter().enumerate() {
        if place > 0 {
            literal.push('.');
        }
        match token {
            Token::Literal(token) => literal.push_str(token),
            Token::Field(field) => {
                if !literal.is_empty() {
                    let text = std::mem::take(&mut literal);
                    parts.push(quote!(#core::fmt::Formatter::write_str(f, #text)?;));
                }
                let (member, span) = (members.next(), field.ty().span());
                parts.push(quote_spanned! {span=>
                    #core::fmt::Display::fmt(&#root::__private::Escaped(&self.#member), f)?;
                });
            }
        }
    }
    if !literal.is_empty() {
        parts.push(quote!(#core::fmt::Formatter::write_str(f, #literal)?;));
    }
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::fmt::Display for #key {
            fn fmt(&self, f: &mut #core::fmt::Formatter<'_>) -> #core::fmt::Result {
                #(#parts)*
                #core::result::Result::Ok(())
            }
        }
    }
}

fn parsing(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let private = quote!(#root::__private);
    let core = quote!(#private::core);
    let key = name(input);
    let next = quote!(#private::next_token(Self::TEMPLATE, &mut __tokens)?);
    let mut variables = Vec::new();
    let parts = template
        .tokens
        .iter()
        .map(|token| match token {
            Token::Literal(literal) => quote!(#private::parse_literal(Self::TEMPLATE, #literal, #next)?;),
            Token::Field(field) => {
                let variable = format_ident!("__field_{}", variables.len());
                let (ty, field) = (field.ty(), field.name());
                variables.push(variable.clone());
                let parse = quote_spanned!(ty.span()=> #private::parse_field::<#ty>);
                quote!(let #variable = #parse(Self::TEMPLATE, #field, #next)?;)
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
                __text: &#core::primitive::str,
            ) -> #core::result::Result<Self, #root::ParseKeyError> {
                let mut __tokens = #core::primitive::str::split(__text, '.');
                #(#parts)*
                #private::finish_key(Self::TEMPLATE, __tokens, __text, Self { #(#members: #variables),* })
            }
        }
    }
}

fn conversions(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let core = quote!(#root::__private::core);
    let std = quote!(#root::__private::std);
    let key = name(input);
    let members = members(template);
    let types = template.fields().map(|field| field.ty()).collect::<Vec<_>>();
    let from = if let [ty] = types.as_slice() {
        let member = members.first().into_iter();
        quote! {
            #[automatically_derived]
            #[allow(deprecated)]
            impl #core::convert::From<#ty> for #key {
                fn from(__field: #ty) -> Self {
                    Self { #(#member: __field)* }
                }
            }
        }
    } else {
        let places = (0..types.len()).map(syn::Index::from);
        quote! {
            #[automatically_derived]
            #[allow(deprecated)]
            impl #core::convert::From<(#(#types),*)> for #key {
                fn from(__fields: (#(#types),*)) -> Self {
                    Self { #(#members: __fields.#places),* }
                }
            }
        }
    };
    let into_key = [key.to_token_stream(), quote!(&#key)].map(|ty| {
        quote! {
            #[automatically_derived]
            #[allow(deprecated)]
            impl #root::IntoKey for #ty {
                fn into_key(self) -> #core::result::Result<#root::Key, #root::KvError> {
                    #root::Key::new(#std::string::ToString::to_string(&self))
                }
            }
        }
    });
    quote! {
        #from
        #(#into_key)*

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::convert::From<&#key> for #key {
            fn from(__key: &#key) -> Self {
                #core::clone::Clone::clone(__key)
            }
        }
    }
}
