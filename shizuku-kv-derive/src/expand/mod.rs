//! Writes the impls. All checks are in `valid`.

pub(crate) mod codec;
mod key_conversions;
mod key_scopes;
mod key_traits;
mod key_type;
mod options;
pub(crate) mod record;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]
mod snapshots;
pub(crate) mod static_key;

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{DeriveInput, Result};

use crate::ast::Input;
use crate::manifest;

/// The output of a derive.
#[derive(Default)]
pub(crate) struct Written {
    /// The types, which the user can name.
    pub(crate) types: TokenStream,
    /// The impls, in which [`root`] is the library.
    pub(crate) impls: TokenStream,
}

impl From<TokenStream> for Written {
    fn from(impls: TokenStream) -> Self {
        Self { types: TokenStream::new(), impls }
    }
}

/// Runs one derive. Returns the impl, or the error with a stand-in for it.
pub(crate) fn derive(
    input: proc_macro::TokenStream,
    expand: impl FnOnce(&Input<'_>) -> Result<Written>,
    fallback: impl FnOnce(&Input<'_>) -> Written,
) -> proc_macro::TokenStream {
    match syn::parse(input) {
        Ok(input) => expanded(&input, expand, fallback).into(),
        Err(error) => error.into_compile_error().into(),
    }
}

fn expanded(
    input: &DeriveInput,
    expand: impl FnOnce(&Input<'_>) -> Result<Written>,
    fallback: impl FnOnce(&Input<'_>) -> Written,
) -> TokenStream {
    let (input, read) = Input::new(input);
    match read.and_then(|()| expand(&input)) {
        Ok(written) => placed(&input, written),
        Err(error) => {
            let (error, stand_in) = (error.into_compile_error(), placed(&input, fallback(&input)));
            quote!(#error #stand_in)
        }
    }
}

/// Places the impls in a scope of their own that imports the library under one name. If the library
/// is missing, that import is the only error.
fn placed(input: &Input<'_>, Written { types, impls }: Written) -> TokenStream {
    let (path, root) = (path(input), root());
    // The span is that of the option, if it is given, for the error if the path leads nowhere.
    let at = input.attrs.root.as_ref().map_or_else(Span::call_site, |root| located(root.span()));
    let import = moved(quote!(use #path as #root;), at);
    quote! {
        #types

        const _: () = {
            #[allow(unused_imports, clippy::useless_attribute)]
            #import

            #impls
        };
    }
}

/// Returns the path of the library, as the user would write it.
pub(crate) fn path(input: &Input<'_>) -> TokenStream {
    let renamed = || manifest::renamed().and_then(|name| syn::parse_str::<Ident>(name).ok());
    match &input.attrs.root {
        Some(root) => quote!(#root),
        None => renamed().map_or_else(|| quote!(::shizuku_kv), |name| quote!(::#name)),
    }
}

/// Returns the name of the library in the scope of the impls.
pub(crate) fn root() -> TokenStream {
    quote!(__shizuku_kv)
}

/// Returns the name of a local variable or an argument. The prefix distinguishes it from constants
/// in the user's scope, because a pattern of the same name would mean the constant.
fn local(name: &str) -> Ident {
    format_ident!("__{name}")
}

/// Returns the user's span with the macro's scope.
pub(crate) fn located(span: Span) -> Span {
    span.resolved_at(Span::call_site())
}

/// Moves tokens to the user's span. If a part of an expression has another span, rustc shows the
/// whole expression at the derive.
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
