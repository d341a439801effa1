//! Contains every check, each with a message that says what to write instead.

mod literal;
mod serde;
mod template;

use std::time::Duration;

use proc_macro2::Span;
use quote::format_ident;
use syn::ext::IdentExt;
use syn::{Error, Ident, LitStr, Path, Result};

use crate::ast::{Field, Input, Shape};
use crate::attr::Role;
use crate::codec::Codec;

pub(crate) use serde::{Directions, read_back};
pub(crate) use template::{Template, Token};

/// A record in one of the forms for which `KeyValue` can be derived.
pub(crate) enum Record<'a> {
    /// `#[kv(key = "user.{tenant}.{id}")]`.
    Template(Template<'a>),
    /// `#[kv(key)]` on one field.
    FieldKey(&'a Field<'a>),
    /// `#[kv(key)]` on one field and `#[kv(value)]` on the other.
    Pair { key: &'a Field<'a>, value: &'a Field<'a> },
}

/// The settings of the type's attribute besides the key.
#[derive(Default)]
pub(crate) struct Options<'a> {
    pub(crate) bucket: Option<String>,
    pub(crate) validate: Option<&'a Path>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) codec: Option<Codec>,
}

pub(crate) fn options<'a>(input: &'a Input<'_>) -> Result<Options<'a>> {
    let codec = input.attrs.codec.as_ref().map(Codec::named).transpose()?;
    if let Some(codec) = codec {
        read_back(input, codec, Directions::Both)?;
    }
    Ok(Options {
        bucket: input.attrs.bucket.as_ref().map(literal::bucket).transpose()?,
        validate: input.attrs.validate.as_ref(),
        ttl: input.attrs.ttl.as_ref().map(literal::duration).transpose()?,
        codec,
    })
}

/// Returns the key of a type with a fixed key.
pub(crate) fn static_key<'a>(input: &'a Input<'_>) -> Result<&'a LitStr> {
    match &input.shape {
        Shape::Union => return Err(union(input)),
        Shape::Struct(fields) => {
            if let Some(role) = fields.iter().find_map(|field| field.role) {
                let message = "a type with one fixed key has none in its fields: derive `KeyValue` instead of \
                               `StaticKeyIndexedValue`";
                return Err(Error::new(role.span(), message));
            }
        }
        Shape::Enum => {}
    }
    let Some(key) = &input.attrs.key else {
        let name = &input.original.ident;
        let message = format!("`{name}` has no key: write `#[kv(key = \"…\")]` under the derive");
        return Err(Error::new(name.span(), message));
    };
    let text = key.value();
    if text.contains(['{', '}']) {
        let message =
            "a fixed key has no placeholders: derive `KeyValue` instead of `StaticKeyIndexedValue`";
        return Err(Error::new(key.span(), message));
    }
    literal::check(key, &text)?;
    no_key_type(input, "a type with one fixed key")?;
    Ok(key)
}

/// Returns the form of a record.
pub(crate) fn record<'a>(input: &'a Input<'_>) -> Result<Record<'a>> {
    let name = &input.original.ident;
    let fields = match &input.shape {
        Shape::Struct(fields) => fields,
        Shape::Enum => {
            let message = format!(
                "`{name}` is an enum, which has no fields to make a key of: put it into a struct with a `#[kv(key)]` \
                 and a `#[kv(value)]` field, or derive `StaticKeyIndexedValue` for one fixed key"
            );
            return Err(Error::new(name.span(), message));
        }
        Shape::Union => return Err(union(input)),
    };
    let key = only(fields, |role| matches!(role, Role::Key(_)), "key")?;
    let value = only(fields, |role| matches!(role, Role::Value(_)), "value")?;
    let record = match (&input.attrs.key, key, value) {
        (Some(literal), None, None) => {
            Record::Template(template::template(input, literal, fields)?)
        }
        (Some(_), Some((_, span)), _) => {
            let message = "the key is given twice: keep `#[kv(key = \"…\")]` on the struct or `#[kv(key)]` on the field";
            return Err(Error::new(span, message));
        }
        (Some(_), None, Some((_, span))) => {
            let message = "a struct with a key template is stored as a whole: remove `#[kv(value)]`, or mark one field \
                           with `#[kv(key)]` instead of the template";
            return Err(Error::new(span, message));
        }
        (None, Some((key, _)), Some((value, _))) => pair(fields, key, value)?,
        (None, Some((key, _)), None) => Record::FieldKey(key),
        (None, None, Some((_, span))) => {
            let message = "a value needs a key: mark the field that is the key with `#[kv(key)]`";
            return Err(Error::new(span, message));
        }
        (None, None, None) => {
            let message = format!(
                "`{name}` has no key: write `#[kv(key = \"….{{field}}\")]` under the derive, or mark a field with \
                 `#[kv(key)]`"
            );
            return Err(Error::new(name.span(), message));
        }
    };
    // Only the value of a pair is stored, in its own form. Protocol Buffers do not use serde.
    if input.attrs.codec.as_ref().is_none_or(|codec| codec != "protobuf") {
        match &record {
            Record::Template(template) => {
                template.fields().try_for_each(|field| serde::key_field(field.original))?;
            }
            Record::FieldKey(key) => serde::key_field(key.original)?,
            Record::Pair { .. } => {}
        }
    }
    if let Record::FieldKey(key) | Record::Pair { key, .. } = &record {
        template::check_prints(key)?;
        no_key_type(input, "a struct with `#[kv(key)]` on a field")?;
    }
    if let (Record::Pair { value, .. }, Some(codec)) = (&record, &input.attrs.codec) {
        let message = format!(
            "only the value of a pair is stored, so that the codec is that of its type: derive it there, on the type of \
             `{}`, as with `JsonByteSer` and `JsonByteDes`",
            value.name()
        );
        return Err(Error::new(codec.span(), message));
    }
    Ok(record)
}

pub(crate) fn union(input: &Input<'_>) -> Error {
    Error::new(input.original.ident.span(), "a union cannot be stored: use a struct or an enum")
}

/// Rejects `codec` for a derive that is a codec by itself. The derives of both directions report
/// the same, which rustc shows once.
pub(crate) fn one_codec(input: &Input<'_>) -> Result<()> {
    match &input.attrs.codec {
        Some(codec) => {
            let message = format!(
                "the type has two codecs: `codec = {codec}` implements both directions, as a derive like `JsonByteSer` or \
                 `JsonByteDes` does for one: remove `codec`, or these derives"
            );
            Err(Error::new(codec.span(), message))
        }
        None => Ok(()),
    }
}

/// Rejects options of a key type if no key type is generated.
fn no_key_type(input: &Input<'_>, what: &str) -> Result<()> {
    let name = input.attrs.key_type.as_ref().map(|name| ("key_type", name.span()));
    match name.or(input.attrs.key_serde.map(|span| ("key_serde", span))) {
        Some((option, span)) => {
            let message = format!(
                "`{option}` is about the key type that a template makes, and {what} has none: remove it, or write \
                 `#[kv(key = \"….{{field}}\")]`"
            );
            Err(Error::new(span, message))
        }
        None => Ok(()),
    }
}

/// Returns the only field with a role.
fn only<'a>(
    fields: &'a [Field<'a>],
    wanted: fn(Role) -> bool,
    name: &str,
) -> Result<Option<(&'a Field<'a>, Span)>> {
    let mut found = None;
    for field in fields {
        let Some(role) = field.role.filter(|role| wanted(*role)) else { continue };
        if found.replace((field, role.span())).is_some() {
            return Err(Error::new(
                role.span(),
                format!("only one field can be the {name}: remove one `#[kv({name})]`"),
            ));
        }
    }
    Ok(found)
}

fn pair<'a>(
    fields: &'a [Field<'a>],
    key: &'a Field<'a>,
    value: &'a Field<'a>,
) -> Result<Record<'a>> {
    match fields.iter().find(|field| field.role.is_none()) {
        Some(other) => Err(Error::new(
            other.span(),
            "a key and value pair has these two fields only, the others would not be stored: move this into the \
             value, or remove `#[kv(value)]` to store the struct as a whole",
        )),
        None => Ok(Record::Pair { key, value }),
    }
}

/// Returns the name of the key type of a template: `UserKey` for `User`, or the value of
/// `key_type`.
pub(crate) fn key_type(input: &Input<'_>) -> Ident {
    let name = &input.original.ident;
    match &input.attrs.key_type {
        Some(name) => name.clone(),
        None => format_ident!("{}Key", name.unraw(), span = name.span()),
    }
}

#[cfg(test)]
mod tests;
