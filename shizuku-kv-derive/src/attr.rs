//! What `#[kv(…)]` says, as it was written.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned;
use syn::{Attribute, Error, LitStr, Path, Result, Token};

use crate::suggest::did_you_mean;

/// The options of a type.
#[derive(Default)]
pub(crate) struct ContainerAttrs {
    /// `key = "…"`.
    pub(crate) key: Option<LitStr>,
    /// `crate = path`.
    pub(crate) root: Option<Path>,
}

/// The option of a field.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    /// `key`.
    Key(Span),
    /// `value`.
    Value(Span),
}

impl Role {
    pub(crate) fn span(self) -> Span {
        match self {
            Self::Key(span) | Self::Value(span) => span,
        }
    }
}

pub(crate) fn is_kv(attribute: &Attribute) -> bool {
    attribute.path().is_ident("kv")
}

/// The options of a type.
pub(crate) fn container(attributes: &[Attribute]) -> Result<ContainerAttrs> {
    let mut attrs = ContainerAttrs::default();
    for attribute in attributes.iter().filter(|attribute| is_kv(attribute)) {
        attribute.parse_nested_meta(|meta| match option(&meta).as_str() {
            "key" => {
                if !meta.input.peek(Token![=]) {
                    return Err(meta.error("the key is missing: write `key = \"…\"`"));
                }
                let literal = meta.value()?;
                let Ok(literal) = literal.parse::<LitStr>() else {
                    return Err(literal.error("the key is a string literal: write `key = \"…\"`"));
                };
                once(&mut attrs.key, literal, &meta)
            }
            "crate" => {
                if !meta.input.peek(Token![=]) {
                    return Err(meta.error("the path is missing: write `crate = path::to::shizuku_kv`"));
                }
                let path = meta.value()?;
                if let Ok(literal) = path.fork().parse::<LitStr>() {
                    let message = format!("the path is not a string: write `crate = {}`", literal.value());
                    return Err(Error::new(literal.span(), message));
                }
                let path = path.call(Path::parse_mod_style)?;
                once(&mut attrs.root, path, &meta)
            }
            "value" => {
                Err(meta.error("`value` belongs on a field: it marks the value of a key and value pair"))
            }
            other => Err(meta.error(unknown(other, &["key", "crate"]))),
        })?;
    }
    Ok(attrs)
}

/// The option of a field.
pub(crate) fn field(attributes: &[Attribute]) -> Result<Option<Role>> {
    let mut role = None;
    for attribute in attributes.iter().filter(|attribute| is_kv(attribute)) {
        attribute.parse_nested_meta(|meta| {
            let span = meta.path.span();
            let (name, found) = match option(&meta).as_str() {
                "key" => ("key", Role::Key(span)),
                "value" => ("value", Role::Value(span)),
                "crate" => return Err(meta.error("`crate` belongs on the type, not on a field")),
                other => return Err(meta.error(unknown(other, &["key", "value"]))),
            };
            if meta.input.peek(Token![=]) {
                let message = format!(
                    "`{name}` of a field takes no value: write `#[kv({name})]`, or put `#[kv(key = \"…\")]` on the type"
                );
                return Err(meta.error(message));
            }
            once(&mut role, found, &meta)
        })?;
    }
    Ok(role)
}

/// Refuses `#[kv(…)]` where it has no meaning.
pub(crate) fn none(attributes: &[Attribute], instead: &str) -> Result<()> {
    match attributes.iter().find(|attribute| is_kv(attribute)) {
        Some(attribute) => {
            Err(Error::new(attribute.path().span(), format!("`kv` has no meaning here: {instead}")))
        }
        None => Ok(()),
    }
}

fn option(meta: &ParseNestedMeta<'_>) -> String {
    meta.path.get_ident().map(|ident| ident.unraw().to_string()).unwrap_or_default()
}

fn once<T>(place: &mut Option<T>, value: T, meta: &ParseNestedMeta<'_>) -> Result<()> {
    if place.replace(value).is_some() {
        return Err(meta.error("this option is given twice: remove one"));
    }
    Ok(())
}

fn unknown(option: &str, known: &[&str]) -> String {
    let options = known.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(" and ");
    match did_you_mean(option, known.iter().copied()) {
        Some(near) => format!("unknown option `{option}`, did you mean `{near}`?"),
        None => format!("unknown option `{option}`; the options here are {options}"),
    }
}
