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
    /// The input, and the first mistake in its attributes. What could be read is there all the same, for the
    /// stand-ins.
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

/// Keeps the first mistake: what follows may only follow from it.
fn first(all: &mut Result<()>, next: Result<()>) {
    if all.is_ok() {
        *all = next;
    }
}

impl Field<'_> {
    /// The name as a template has it: without `r#`, a number in a tuple struct.
    pub(crate) fn name(&self) -> String {
        match &self.member {
            Member::Named(ident) => ident.unraw().to_string(),
            Member::Unnamed(index) => index.index.to_string(),
        }
    }

    /// The type, without the invisible group that a macro's `$t:ty` is in.
    pub(crate) fn ty(&self) -> &Type {
        let mut ty = &self.original.ty;
        while let Type::Group(TypeGroup { elem, .. }) | Type::Paren(TypeParen { elem, .. }) = ty {
            ty = elem;
        }
        ty
    }

    /// Where the field is named, or where it stands.
    pub(crate) fn span(&self) -> Span {
        match &self.original.ident {
            Some(ident) => ident.span(),
            None => self.original.ty.span(),
        }
    }
}
