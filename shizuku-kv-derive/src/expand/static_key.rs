//! `StaticKeyIndexedValue`.

use quote::quote;
use syn::Result;

use super::options::{self, Names};
use super::{Written, root};
use crate::ast::Input;
use crate::valid;

pub(crate) fn expand(input: &Input<'_>) -> Result<Written> {
    let key = valid::static_key(input)?;
    let options = valid::options(input)?;
    let root = root();
    let name = &input.original.ident;
    let (generics, parameters, conditions) = input.original.generics.split_for_impl();
    let methods = options::methods(&options, &Names::of_static_key());
    let items = options::items(input, &options);
    let impls = quote! {
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
    };
    Ok(impls.into())
}
