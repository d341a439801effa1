//! The input as the user wrote it.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Member, Result, Type, TypeGroup, TypeParen};

use crate::attr::{self, ContainerAttrs, Role};

/// A type with a derive on it.
pub(crate) struct Input<'a> {
    pub(crate) original: &'a DeriveInput,
    pub(crate) attrs: ContainerAttrs,
    pub(crate) shape: Shape<'a>,
}

pub(crate) enum Shape<'a> {
    Struct(Vec<Field<'a>>),
    Enum,
    Union,
}

/// A field of a struct.
pub(crate) struct Field<'a> {
    pub(crate) original: &'a syn::Field,
    pub(crate) member: Member,
    pub(crate) role: Option<Role>,
}

impl<'a> Input<'a> {
    /// Returns the input, and the first mistake in its attributes. The input contains everything
    /// that could be read, for the stand-ins.
    pub(crate) fn new(original: &'a DeriveInput) -> (Self, Result<()>) {
        let (attrs, mut read) = attr::container(&original.attrs);
        let shape = match &original.data {
            Data::Struct(data) => Shape::Struct(
                data.fields
                    .members()
                    .zip(&data.fields)
                    .map(|(member, original)| {
                        let role = attr::field(&original.attrs);
                        let (role, in_field) =
                            role.map_or_else(|error| (None, Err(error)), |role| (role, Ok(())));
                        first(&mut read, in_field);
                        Field { original, member, role }
                    })
                    .collect(),
            ),
            Data::Enum(data) => {
                for variant in &data.variants {
                    first(&mut read, attr::none(&variant.attrs, "it belongs on the enum"));
                    for field in &variant.fields {
                        first(&mut read, attr::none(&field.attrs, "it belongs on the enum"));
                    }
                }
                Shape::Enum
            }
            Data::Union(_) => Shape::Union,
        };
        (Self { original, attrs, shape }, read)
    }
}

/// Keeps the first mistake, because later ones may only follow from it.
fn first(all: &mut Result<()>, next: Result<()>) {
    if all.is_ok() {
        *all = next;
    }
}

impl Field<'_> {
    /// Returns the field's name as a template writes it: without `r#`, and a number in a tuple
    /// struct.
    pub(crate) fn name(&self) -> String {
        match &self.member {
            Member::Named(ident) => ident.unraw().to_string(),
            Member::Unnamed(index) => index.index.to_string(),
        }
    }

    /// Returns the field's type, without the invisible group around a macro's `$t:ty`.
    pub(crate) fn ty(&self) -> &Type {
        let mut ty = &self.original.ty;
        while let Type::Group(TypeGroup { elem, .. }) | Type::Paren(TypeParen { elem, .. }) = ty {
            ty = elem;
        }
        ty
    }

    /// Returns the span of the field's name, or of the whole field if it has no name.
    pub(crate) fn span(&self) -> Span {
        match &self.original.ident {
            Some(ident) => ident.span(),
            None => self.original.ty.span(),
        }
    }
}
