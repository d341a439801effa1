//! `StaticKeyIndexedValue`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::Result;

use super::options::{self, Names};
use super::root;
use crate::ast::Input;
use crate::valid;

pub(crate) fn expand(input: &Input<'_>) -> Result<TokenStream> {
    let key = valid::static_key(input)?;
    let options = valid::options(input)?;
    let root = root(input);
    let name = &input.original.ident;
    let (generics, parameters, conditions) = input.original.generics.split_for_impl();
    let methods = options::methods(input, &options, &Names::of_static_key());
    let items = options::items(input, &options);
    Ok(quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #generics #root::StaticKeyIndexedValue for #name #parameters #conditions {
            fn key() -> #root::__private::std::string::String {
                <#root::__private::std::string::String as #root::__private::core::convert::From<
                    &#root::__private::core::primitive::str,
                >>::from(#key)
            }

            #methods
        }

        #items
    })
}
