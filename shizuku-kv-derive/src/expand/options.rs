//! The items that `bucket`, `validate` and `ttl` generate.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::Path;
use syn::spanned::Spanned;

use super::{codec, located, moved, root};
use crate::ast::Input;
use crate::valid::Options;

/// Returns the items beside the impl: the codec, and the type's own store.
pub(super) fn items(input: &Input<'_>, options: &Options<'_>) -> TokenStream {
    let codec = options.codec.map(|codec| codec::both(input, codec));
    let bucket = options.bucket.as_ref().map(|bucket| store(input, bucket, options.ttl.is_some()));
    quote!(#codec #bucket)
}

/// Returns the methods in the impl.
pub(super) fn methods(options: &Options<'_>, names: &Names) -> TokenStream {
    let root = root();
    let core = quote!(#root::__private::core);
    let validate = options.validate.map(|path| {
        let (method, text) = (&names.validate, text(path));
        // The span is that of the path, for the error if its function has another signature.
        let validate = quote!(#root::__private::validate::<Self, _>(self, #text, #path));
        let validate = moved(validate, located(last(path)));
        quote! {
            fn #method(&self) -> #core::result::Result<(), #root::ValidationError> {
                #validate
            }
        }
    });
    let ttl = options.ttl.map(|ttl| {
        let method = &names.ttl;
        let (seconds, nanoseconds) = (ttl.as_secs(), ttl.subsec_nanos());
        quote! {
            fn #method() -> #core::option::Option<#core::time::Duration> {
                #core::option::Option::Some(#core::time::Duration::new(#seconds, #nanoseconds))
            }
        }
    });
    quote!(#validate #ttl)
}

/// Names of the methods in a trait.
pub(super) struct Names {
    validate: Ident,
    ttl: Ident,
}

impl Names {
    pub(super) fn of_record() -> Self {
        Self { validate: format_ident!("kv_validate"), ttl: format_ident!("kv_ttl") }
    }

    pub(super) fn of_static_key() -> Self {
        Self { validate: format_ident!("validate_value"), ttl: format_ident!("value_ttl") }
    }
}

/// Returns the span of the function's own name.
fn last(path: &Path) -> Span {
    path.segments.last().map_or_else(|| path.span(), |segment| segment.ident.span())
}

/// Returns the path as it was written, without the spaces between printed tokens.
fn text(path: &Path) -> String {
    path.to_token_stream().to_string().replace(' ', "")
}

fn store(input: &Input<'_>, bucket: &str, expires: bool) -> TokenStream {
    let root = root();
    let core = quote!(#root::__private::core);
    let (name, visibility) = (&input.original.ident, &input.original.vis);
    let (generics, parameters, conditions) = input.original.generics.split_for_impl();
    let (config, with) = if expires {
        (
            quote!(#root::StoreConfig::key_ttl(#root::StoreConfig::new(), true)),
            ", with times to live for single keys",
        )
    } else {
        (quote!(#root::StoreConfig::new()), "")
    };
    let opens = format!(" Opens the store `{bucket}`, and creates it where there is none{with}.");
    quote! {
        #[automatically_derived]
        #[allow(dead_code, deprecated)]
        impl #generics #name #parameters #conditions {
            /// The name of the store that [`open`](Self::open) opens.
            #visibility const BUCKET: &'static #core::primitive::str = #bucket;

            #[doc = #opens]
            ///
            /// # Errors
            /// Those of the connection's `store_with_config`.
            #visibility async fn open(
                connection: &dyn #root::Connection,
            ) -> #core::result::Result<#root::Store, #root::KvError> {
                #root::Connection::store_with_config(connection, Self::BUCKET, #config).await
            }
        }
    }
}
