//! The impls. Nothing is checked here any more.

pub(crate) mod codec;
mod key_conversions;
mod key_scopes;
mod key_type;
mod options;
pub(crate) mod record;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]
mod snapshots;
pub(crate) mod static_key;

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::{format_ident, quote};
use syn::{DeriveInput, Result};

use crate::ast::Input;

/// Runs one derive: the impl, or the error with a stand-in for it.
pub(crate) fn derive(
    input: proc_macro::TokenStream,
    expand: impl FnOnce(&Input<'_>) -> Result<TokenStream>,
    fallback: impl FnOnce(&Input<'_>) -> TokenStream,
) -> proc_macro::TokenStream {
    match syn::parse(input) {
        Ok(input) => expanded(&input, expand, fallback).into(),
        Err(error) => error.into_compile_error().into(),
    }
}

fn expanded(
    input: &DeriveInput,
    expand: impl FnOnce(&Input<'_>) -> Result<TokenStream>,
    fallback: impl FnOnce(&Input<'_>) -> TokenStream,
) -> TokenStream {
    let (input, read) = Input::new(input);
    match read.and_then(|()| expand(&input)) {
        Ok(expanded) => expanded,
        Err(error) => {
            let (error, stand_in) = (error.into_compile_error(), fallback(&input));
            quote!(#error #stand_in)
        }
    }
}

/// The path of the library.
pub(crate) fn root(input: &Input<'_>) -> TokenStream {
    input.attrs.root.as_ref().map_or_else(|| quote!(::shizuku_kv), |root| quote!(#root))
}

/// The name of a local variable or an argument. The prefix keeps it apart from constants that the user has in scope,
/// which a pattern of the same name would mean.
fn local(name: &str) -> Ident {
    format_ident!("__{name}")
}

/// The user's place with the macro's scope.
pub(crate) fn located(span: Span) -> Span {
    span.resolved_at(Span::call_site())
}

/// Tokens at the user's place. Where a part of an expression is not there, rustc shows the whole at the derive.
pub(crate) fn moved(tokens: TokenStream, span: Span) -> TokenStream {
    tokens
        .into_iter()
        .map(|mut token| {
            if let TokenTree::Group(group) = &token {
                token =
                    TokenTree::Group(Group::new(group.delimiter(), moved(group.stream(), span)));
            }
            token.set_span(token.span().located_at(span));
            token
        })
        .collect()
}
