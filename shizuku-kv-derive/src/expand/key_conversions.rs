//! What a key type is made from, and what it becomes.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::{Index, Member, Type};

use super::{key_type::members, local, root};
use crate::ast::Input;
use crate::valid::{Template, key_type};

pub(super) fn expand(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let core = quote!(#root::__private::core);
    let key = key_type(input);
    let from_fields = from_fields(input, template);
    let from_text = from_text(input, template);
    let other = local("key");
    let into_key = [key.to_token_stream(), quote!(&#key)].map(|ty| {
        quote! {
            #[automatically_derived]
            #[allow(deprecated)]
            impl #root::IntoKey for #ty {
                fn into_key(self) -> #core::result::Result<#root::Key, #root::KvError> {
                    #root::__private::into_key(&self)
                }
            }
        }
    });
    let serde = input.attrs.key_serde.map(|_| serde(input));
    quote! {
        #from_fields
        #from_text
        #(#into_key)*

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::convert::From<&#key> for #key {
            fn from(#other: &#key) -> Self {
                #core::clone::Clone::clone(#other)
            }
        }

        #serde
    }
}

/// From the one field, or the tuple of all.
fn from_fields(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root(input);
    let core = quote!(#root::__private::core);
    let key = key_type(input);
    let types = template.fields().map(|field| field.ty().to_token_stream()).collect::<Vec<_>>();
    let fields = local("fields");
    let (ty, values) = tuple(&types, &fields);
    let members = members(template);
    // For those that write keys of any number of fields: a tuple of one.
    let from_one = matches!(types.as_slice(), [_]).then(|| {
        quote! {
            #[automatically_derived]
            #[allow(deprecated)]
            impl #core::convert::From<(#ty,)> for #key {
                fn from(#fields: (#ty,)) -> Self {
                    #core::convert::From::from(#fields.0)
                }
            }
        }
    });
    quote! {
        #from_one

        #[automatically_derived]
        #[allow(deprecated)]
        impl #core::convert::From<#ty> for #key {
            fn from(#fields: #ty) -> Self {
                Self { #(#members: #values),* }
            }
        }
    }
}

/// The same with `&str` for each `String`, where there is one.
fn from_text(input: &Input<'_>, template: &Template<'_>) -> Option<TokenStream> {
    let root = root(input);
    let core = quote!(#root::__private::core);
    let key = key_type(input);
    let fields = template.fields().map(|field| field.ty()).collect::<Vec<_>>();
    let string = fields.iter().find(|ty| is_string(ty))?;
    let text = quote!(&'text #core::primitive::str);
    let types = fields
        .iter()
        .map(|ty| if is_string(ty) { text.clone() } else { ty.to_token_stream() })
        .collect::<Vec<_>>();
    let argument = local("fields");
    let (ty, values) = tuple(&types, &argument);
    let assignments =
        members(template).into_iter().zip(values).zip(&fields).map(|((member, value), ty)| {
            if is_string(ty) {
                quote!(#member: #core::convert::From::from(#value))
            } else {
                quote!(#member: #value)
            }
        });
    // The condition holds for the standard library's `String`. For another type of that name it may not: then there
    // is no such impl, and no error either, because a condition with a lifetime is looked at only where it is used.
    Some(quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl<'text> #core::convert::From<#ty> for #key
        where
            #string: #core::convert::From<#text>,
        {
            fn from(#argument: #ty) -> Self {
                Self { #(#assignments),* }
            }
        }
    })
}

/// The type of one value or of a tuple, and the values in it.
fn tuple(types: &[TokenStream], name: &Ident) -> (TokenStream, Vec<TokenStream>) {
    match types {
        [ty] => (ty.clone(), vec![quote!(#name)]),
        types => {
            let values = (0..types.len()).map(|place| Member::Unnamed(Index::from(place)));
            (quote!((#(#types),*)), values.map(|value| quote!(#name.#value)).collect())
        }
    }
}

/// Whether a type is written as the standard library's `String`.
pub(super) fn is_string(ty: &Type) -> bool {
    let Type::Path(path) = ty else { return false };
    let segments =
        path.path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>();
    let segments = segments.iter().map(String::as_str).collect::<Vec<_>>();
    path.qself.is_none()
        && matches!(
            segments.as_slice(),
            ["String"] | ["string", "String"] | ["std" | "alloc", "string", "String"]
        )
}

/// As the text that it prints, which can be the key of a map too.
fn serde(input: &Input<'_>) -> TokenStream {
    let root = root(input);
    let core = quote!(#root::__private::core);
    let serde = quote!(#root::__private::serde);
    let key = key_type(input);
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #serde::Serialize for #key {
            fn serialize<__S: #serde::Serializer>(
                &self,
                __serializer: __S,
            ) -> #core::result::Result<__S::Ok, __S::Error> {
                #serde::Serializer::collect_str(__serializer, self)
            }
        }

        #[automatically_derived]
        #[allow(deprecated)]
        impl<'de> #serde::Deserialize<'de> for #key {
            fn deserialize<__D: #serde::Deserializer<'de>>(
                __deserializer: __D,
            ) -> #core::result::Result<Self, __D::Error> {
                #root::__private::deserialize_key(__deserializer)
            }
        }
    }
}
