//! The impls. Nothing is checked here any more.

pub(crate) mod json;
mod key_type;
pub(crate) mod record;
pub(crate) mod static_key;

use proc_macro2::TokenStream;
use quote::quote;
use syn::{DeriveInput, Result, parse_macro_input};

use crate::ast::Input;

/// Runs one derive: the impl, or the error with a stand-in for it.
pub(crate) fn derive(
    input: proc_macro::TokenStream,
    expand: fn(&Input<'_>) -> Result<TokenStream>,
    fallback: fn(&DeriveInput) -> TokenStream,
) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    match Input::new(&input).and_then(|input| expand(&input)) {
        Ok(expanded) => expanded.into(),
        Err(error) => {
            let (error, stand_in) = (error.into_compile_error(), fallback(&input));
            quote!(#error #stand_in).into()
        }
    }
}

/// The path of the library.
fn root(input: &Input<'_>) -> TokenStream {
    input.attrs.root.as_ref().map_or_else(default_root, |root| quote!(#root))
}

pub(crate) fn default_root() -> TokenStream {
    quote!(::shizuku_kv)
}
