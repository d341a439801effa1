//! Conversions to and from a key type.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::{Index, Member, Type};

use super::{key_type::members, local, root};
use crate::ast::{Field, Input};
use crate::valid::{Template, key_type};

pub(super) fn expand(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root();
    let core = quote!(#root::__private::core);
    let key = key_type(input);
    let from_fields = from_fields(input, template);
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

/// Implements the conversion from the only field, or from the tuple of all fields. Any other text
/// type also converts to a `String` field.
fn from_fields(input: &Input<'_>, template: &Template<'_>) -> TokenStream {
    let root = root();
    let core = quote!(#root::__private::core);
    let key = key_type(input);
    let fields = local("fields");
    let mut texts = Vec::new();
    let mut bounds = Vec::new();
    let mut own = Vec::new();
    let types = template
        .fields()
        .enumerate()
        .map(|(index, field)| {
            let ty = field.ty();
            if !is_string(ty) {
                return ty.to_token_stream();
            }
            let text = format_ident!("__Text{}", texts.len());
            let bound = quote!(#root::__private::IntoField<#ty, #key, #index>);
            own.push(into_field(&bound, ty, &ty.to_token_stream(), &quote!(self)));
            bounds.push(bound);
            texts.push(text.clone());
            text.to_token_stream()
        })
        .collect::<Vec<_>>();
    let (ty, values) = tuple(&types, &fields);
    let members = members(template);
    let assigned =
        members.iter().zip(values).zip(template.fields()).map(|((member, value), field)| {
            if is_string(field.ty()) {
                quote!(#member: #root::__private::IntoField::__into_field(#value))
            } else {
                quote!(#member: #value)
            }
        });
    // A tuple of one field serves code that writes keys with any number of fields. A text in such a
    // tuple converts like a text alone.
    let only = if types.len() == 1 { template.fields().next() } else { None };
    let from_one = only.map(Field::ty).map(|field| match bounds.first() {
        Some(bound) => into_field(bound, field, &quote!((#field,)), &quote!(self.0)),
        None => quote! {
            #[automatically_derived]
            #[allow(deprecated)]
            impl #core::convert::From<(#ty,)> for #key {
                fn from(#fields: (#ty,)) -> Self {
                    #core::convert::From::from(#fields.0)
                }
            }
        },
    });
    quote! {
        #(#own)*
        #from_one

        #[automatically_derived]
        #[allow(deprecated)]
        impl<#(#texts: #bounds),*> #core::convert::From<#ty> for #key {
            fn from(#fields: #ty) -> Self {
                Self { #(#assigned),* }
            }
        }
    }
}

/// Implements the conversion of a text field from its own type, which need not be the standard
/// library's `String`.
fn into_field(
    bound: &TokenStream,
    field: &Type,
    ty: &TokenStream,
    value: &TokenStream,
) -> TokenStream {
    quote! {
        #[automatically_derived]
        #[allow(deprecated)]
        impl #bound for #ty {
            fn __into_field(self) -> #field {
                #value
            }
        }
    }
}

/// Returns the type of one value or of a tuple, and the values in it.
fn tuple(types: &[TokenStream], name: &Ident) -> (TokenStream, Vec<TokenStream>) {
    match types {
        [ty] => (ty.clone(), vec![quote!(#name)]),
        types => {
            let values = (0..types.len()).map(|index| Member::Unnamed(Index::from(index)));
            (quote!((#(#types),*)), values.map(|value| quote!(#name.#value)).collect())
        }
    }
}

/// Returns `true` if a type is written as the standard library's `String`.
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

/// Implements serde with the printed text, which can also be the key of a map.
fn serde(input: &Input<'_>) -> TokenStream {
    let root = root();
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
