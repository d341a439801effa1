//! Every check, each with a message that says what to write instead.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident};
use syn::ext::IdentExt;
use syn::{Error, GenericParam, Generics, Ident, LitStr, Result};

use crate::ast::{Field, Input, Shape};
use crate::attr::Role;
use crate::grammar::{KeyFaultKind, check_key};
use crate::suggest::did_you_mean;

/// A record in one of the forms that `KeyValue` can be derived for.
pub(crate) enum Record<'a> {
    /// `#[kv(key = "user.{tenant}.{id}")]`.
    Template(Template<'a>),
    /// `#[kv(key)]` on one field.
    FieldKey(&'a Field<'a>),
    /// `#[kv(key)]` on one field and `#[kv(value)]` on the other.
    Pair { key: &'a Field<'a>, value: &'a Field<'a> },
}

/// A key that is made of fields.
pub(crate) struct Template<'a> {
    pub(crate) literal: String,
    pub(crate) tokens: Vec<Token<'a>>,
}

/// One token of a template.
pub(crate) enum Token<'a> {
    Literal(String),
    Field(&'a Field<'a>),
}

impl<'a> Template<'a> {
    /// The fields, in the order of the template.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &'a Field<'a>> {
        self.tokens.iter().filter_map(|token| match token {
            Token::Field(field) => Some(*field),
            Token::Literal(_) => None,
        })
    }

    /// What stands before the first placeholder.
    pub(crate) fn prefix(&self) -> &str {
        self.literal.split('{').next().unwrap_or_default()
    }
}

/// The key of a type that has one.
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
    let Some(literal) = &input.attrs.key else {
        let name = &input.original.ident;
        let message = format!("`{name}` has no key: write `#[kv(key = \"…\")]` under the derive");
        return Err(Error::new(name.span(), message));
    };
    let key = literal.value();
    if key.contains(['{', '}']) {
        let message = "a fixed key has no placeholders: derive `KeyValue` instead of `StaticKeyIndexedValue`";
        return Err(Error::new(literal.span(), message));
    }
    check(literal, &key, &key)?;
    Ok(literal)
}

/// The form of a record.
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
    match (&input.attrs.key, key, value) {
        (Some(literal), None, None) => template(input, literal, fields).map(Record::Template),
        (Some(_), Some((_, span)), _) => Err(Error::new(
            span,
            "the key is given twice: keep `#[kv(key = \"…\")]` on the struct or `#[kv(key)]` on the field",
        )),
        (Some(_), None, Some((_, span))) => Err(Error::new(
            span,
            "a struct with a key template is stored as a whole: remove `#[kv(value)]`, or mark one field with \
             `#[kv(key)]` instead of the template",
        )),
        (None, Some((key, _)), Some((value, _))) => pair(fields, key, value),
        (None, Some((key, _)), None) => Ok(Record::FieldKey(key)),
        (None, None, Some((_, span))) => {
            Err(Error::new(span, "a value needs a key: mark the field that is the key with `#[kv(key)]`"))
        }
        (None, None, None) => {
            let message = format!(
                "`{name}` has no key: write `#[kv(key = \"….{{field}}\")]` under the derive, or mark a field with \
                 `#[kv(key)]`"
            );
            Err(Error::new(name.span(), message))
        }
    }
}

fn union(input: &Input<'_>) -> Error {
    Error::new(input.original.ident.span(), "a union cannot be stored: use a struct or an enum")
}

/// The one field with a role.
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

fn pair<'a>(fields: &'a [Field<'a>], key: &'a Field<'a>, value: &'a Field<'a>) -> Result<Record<'a>> {
    match fields.iter().find(|field| field.role.is_none()) {
        Some(other) => Err(Error::new(
            other.span(),
            "a key and value pair has these two fields only, the others would not be stored: move this into the \
             value, or remove `#[kv(value)]` to store the struct as a whole",
        )),
        None => Ok(Record::Pair { key, value }),
    }
}

/// The name of the key type that a template makes: `UserKey` for `User`.
pub(crate) fn key_type(input: &Input<'_>) -> Ident {
    format_ident!("{}Key", input.original.ident.unraw(), span = input.original.ident.span())
}

fn template<'a>(input: &'a Input<'_>, literal: &LitStr, fields: &'a [Field<'a>]) -> Result<Template<'a>> {
    let text = literal.value();
    let refuse = |message: String| Err(Error::new(literal.span(), message));
    if !text.contains(['{', '}']) {
        return refuse(
            "the key names no field, so that there is only one: derive `StaticKeyIndexedValue` instead of \
                       `KeyValue`, or write a placeholder like `{id}`"
                .to_owned(),
        );
    }
    let mut tokens = Vec::new();
    let mut stand_in = String::new();
    let mut rest = text.as_str();
    // Dots inside braces do not separate, so that what is wrong there is said of the placeholder.
    loop {
        let at = text.len() - rest.len();
        let opened = rest.find(['{', '.', '}']).unwrap_or(rest.len());
        let (token, after) = if rest[opened..].starts_with('{') {
            let Some(closed) = rest[opened..].find('}').map(|closed| opened + closed) else {
                return refuse(format!(
                    "invalid key: '{{' at byte {} is not closed: write `{{field}}`",
                    at + opened
                ));
            };
            let (name, after) = (&rest[opened + 1..closed], &rest[closed + 1..]);
            if opened != 0 || !(after.is_empty() || after.starts_with('.')) {
                return refuse(format!(
                    "invalid key: `{{{name}}}` at byte {} is a part of a token: a placeholder is a whole token, with \
                     dots around it",
                    at + opened,
                ));
            }
            (Token::Field(placeholder(input, literal, fields, name, at)?), after)
        } else if rest[opened..].starts_with('}') {
            return refuse(format!(
                "invalid key: '}}' at byte {} closes nothing: write `{{field}}`",
                at + opened
            ));
        } else {
            (Token::Literal(rest[..opened].to_owned()), &rest[opened..])
        };
        let length = rest.len() - after.len();
        match &token {
            // As long as the placeholder, so that positions stay what they are.
            Token::Field(_) => stand_in.extend(std::iter::repeat_n('x', length)),
            Token::Literal(token) => stand_in.push_str(token),
        }
        tokens.push(token);
        match after.strip_prefix('.') {
            Some(after) => {
                stand_in.push('.');
                rest = after;
            }
            None => break,
        }
    }
    check(literal, &text, &stand_in)?;
    let key = key_type(input);
    if let Some(parameter) = input.original.generics.type_params().find(|parameter| parameter.ident == key) {
        let message =
            format!("the type parameter `{key}` has the name of the key type that is generated: rename it");
        return Err(Error::new(parameter.ident.span(), message));
    }
    let template = Template { literal: text, tokens };
    for (place, field) in template.fields().enumerate() {
        if template.fields().take(place).any(|before| before.member == field.member) {
            return refuse(format!("invalid key: `{{{}}}` is there twice: remove one", field.name()));
        }
        if let Some(parameter) = mentioned(&input.original.generics, field.ty().to_token_stream()) {
            let message = format!(
                "the key type is not generic: a field of the key cannot have the parameter `{parameter}` in its type"
            );
            return Err(Error::new(field.span(), message));
        }
    }
    Ok(template)
}

fn placeholder<'a>(
    input: &Input<'_>,
    literal: &LitStr,
    fields: &'a [Field<'a>],
    name: &str,
    at: usize,
) -> Result<&'a Field<'a>> {
    let name = name.strip_prefix("r#").unwrap_or(name);
    if let Some(field) = fields.iter().find(|field| field.name() == name) {
        return Ok(field);
    }
    let owner = &input.original.ident;
    let names = fields.iter().map(Field::name).collect::<Vec<_>>();
    let instead = if fields.is_empty() {
        "it has none".to_owned()
    } else if let Some(near) = did_you_mean(name, names.iter().map(String::as_str)) {
        format!("did you mean `{{{near}}}`?")
    } else {
        let all = names.iter().map(|name| format!("`{{{name}}}`")).collect::<Vec<_>>().join(", ");
        format!("it has {all}")
    };
    let message = format!("invalid key: `{{{name}}}` at byte {at} names no field of `{owner}`; {instead}");
    Err(Error::new(literal.span(), message))
}

/// Checks a key by the store's grammar. `key` is what was written, `checked` the same with placeholders filled in.
fn check(literal: &LitStr, key: &str, checked: &str) -> Result<()> {
    let Err(fault) = check_key(checked) else { return Ok(()) };
    let found = match fault.kind {
        KeyFaultKind::Empty => "it is empty".to_owned(),
        KeyFaultKind::Byte(byte) => match key.get(fault.position..).and_then(|rest| rest.chars().next()) {
            Some(character) => format!("{character:?}"),
            None => format!("0x{byte:02x}"),
        },
        KeyFaultKind::EmptyToken => "'.'".to_owned(),
        KeyFaultKind::Reserved => "\"_kv\"".to_owned(),
        KeyFaultKind::TooLong => format!("a key of {} bytes", key.len()),
    };
    let position = fault.position;
    let message = match fault.kind {
        KeyFaultKind::Empty => format!("invalid key: {found}: {}", fault.kind.reason()),
        _ => format!("invalid key: {found} at byte {position}: {}", fault.kind.reason()),
    };
    Err(Error::new(literal.span(), message))
}

/// The first of the parameters that a type mentions.
fn mentioned(generics: &Generics, ty: TokenStream) -> Option<String> {
    let names = generics
        .params
        .iter()
        .map(|parameter| match parameter {
            GenericParam::Type(parameter) => parameter.ident.to_string(),
            GenericParam::Const(parameter) => parameter.ident.to_string(),
            GenericParam::Lifetime(parameter) => parameter.lifetime.to_string(),
        })
        .collect::<Vec<_>>();
    find(&names, ty)
}

fn find(names: &[String], tokens: TokenStream) -> Option<String> {
    let mut quote = "";
    for token in tokens {
        let named = match token {
            TokenTree::Group(group) => {
                if let Some(found) = find(names, group.stream()) {
                    return Some(found);
                }
                None
            }
            TokenTree::Punct(punct) if punct.as_char() == '\'' => {
                quote = "'";
                continue;
            }
            TokenTree::Ident(ident) => Some(format!("{quote}{ident}")),
            TokenTree::Punct(_) | TokenTree::Literal(_) => None,
        };
        quote = "";
        if named.as_ref().is_some_and(|named| names.contains(named)) {
            return named;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message for an input, or nothing.
    fn refusal(input: &str, check: fn(&Input<'_>) -> Result<()>) -> String {
        let checked = syn::parse_str(input).and_then(|input| check(&Input::new(&input)?));
        checked.err().map_or_else(String::new, |error| error.to_string())
    }

    fn record_refusal(input: &str) -> String {
        refusal(input, |input| record(input).map(|_| ()))
    }

    fn static_refusal(input: &str) -> String {
        refusal(input, |input| static_key(input).map(|_| ()))
    }

    #[test]
    fn templates() {
        let long = format!("a.{{id}}.{}", "b".repeat(1024));
        for (template, message) in [
            ("user.{id}", ""),
            ("{id}", ""),
            ("{id}.{name}", ""),
            ("a=/_-9.{name}.z", ""),
            ("", "the key names no field"),
            ("{", "'{' at byte 0 is not closed"),
            ("a.{id", "'{' at byte 2 is not closed"),
            ("a.id}", "'}' at byte 4 closes nothing"),
            ("{}", "`{}` at byte 0 names no field of `User`; it has `{id}`, `{name}`"),
            ("{id:05}", "`{id:05}` at byte 0 names no field of `User`; it has"),
            ("{nam}", "did you mean `{name}`?"),
            ("a.{a.b}", "`{a.b}` at byte 2 names no field"),
            ("{id}{name}", "`{id}` at byte 0 is a part of a token"),
            ("a-{id}", "`{id}` at byte 2 is a part of a token"),
            ("{id}.{name}.{id}", "`{id}` is there twice"),
            ("a b.{id}", "' ' at byte 1: keys are tokens of"),
            ("{id}.ü", "'ü' at byte 5: keys are tokens of"),
            (".{id}", "'.' at byte 0: empty token"),
            ("{id}.", "'.' at byte 4: empty token"),
            ("{id}..a", "'.' at byte 5: empty token"),
            ("_kv.{id}", "\"_kv\" at byte 0: keys must not start with `_kv`"),
            (&long, "a key of 1031 bytes at byte 1024: keys are at most"),
        ] {
            let found =
                record_refusal(&format!("#[kv(key = {template:?})] struct User {{ id: u64, name: String }}"));
            assert_eq!(message.is_empty(), found.is_empty(), "{template}: {found}");
            assert!(found.contains(message), "{template}: {found}");
        }
    }

    #[test]
    fn records() {
        for (input, message) in [
            ("struct A { #[kv(key)] a: u8, b: u8 }", ""),
            ("struct A { #[kv(key)] a: u8, #[kv(value)] b: u8 }", ""),
            ("struct A(#[kv(value)] u8, #[kv(key)] u8);", ""),
            ("#[kv(key = \"{0}\")] struct A(u8);", ""),
            ("#[kv(key = \"{type}\")] struct A { r#type: u8 }", ""),
            ("#[kv(key = \"{a}\", crate = crate::x)] struct A<T> { a: u8, t: T }", ""),
            ("struct A;", "`A` has no key"),
            ("#[kv(key = \"{a}\")] struct A;", "it has none"),
            ("enum A { B }", "`A` is an enum"),
            ("union A { a: u8 }", "a union cannot be stored"),
            ("struct A { #[kv(key)] a: u8, #[kv(key)] b: u8 }", "only one field can be the key"),
            ("struct A { #[kv(value)] a: u8 }", "a value needs a key"),
            ("#[kv(key = \"{a}\")] struct A { #[kv(key)] a: u8 }", "the key is given twice"),
            ("#[kv(key = \"{a}\")] struct A { a: u8, #[kv(value)] b: u8 }", "is stored as a whole"),
            ("#[kv(key = \"{a}\")] struct A<T> { a: Vec<T> }", "the parameter `T`"),
            (
                "#[kv(key = \"{a}\")] struct A<AKey> { a: u8, b: AKey }",
                "the type parameter `AKey` has the name",
            ),
            ("struct A<AKey> { #[kv(key)] a: u8, b: AKey }", ""),
            ("#[kv(key = \"{a}\")] struct A<'x> { a: &'x str }", "the parameter `'x`"),
            ("#[kv(key = \"{a}\")] struct A<const N: u8> { a: [u8; N] }", "the parameter `N`"),
            ("#[kv(key = \"{a}\")] #[kv(key = \"{a}\")] struct A { a: u8 }", "given twice"),
            ("#[kv(key)] struct A { a: u8 }", "the key is missing"),
            ("#[kv(key = 7)] struct A { a: u8 }", "the key is a string literal"),
            ("#[kv(value)] struct A { a: u8 }", "`value` belongs on a field"),
            ("#[kv(crate)] struct A { a: u8 }", "the path is missing"),
            ("#[kv(crate = \"x::y\")] struct A { a: u8 }", "write `crate = x::y`"),
            ("#[kv(keys = \"a\")] struct A { a: u8 }", "unknown option `keys`, did you mean `key`?"),
            ("#[kv(bucket = \"a\")] struct A { a: u8 }", "unknown option `bucket`; the options here are"),
            ("#[kv] struct A { a: u8 }", "expected attribute arguments"),
            ("#[kv = \"a\"] struct A { a: u8 }", "expected"),
            ("struct A { #[kv(key = \"a\")] a: u8 }", "`key` of a field takes no value"),
            ("struct A { #[kv(crate = a)] a: u8 }", "`crate` belongs on the type"),
            ("struct A { #[kv(valu)] a: u8 }", "did you mean `value`?"),
        ] {
            let found = record_refusal(input);
            assert_eq!(message.is_empty(), found.is_empty(), "{input}: {found}");
            assert!(found.contains(message), "{input}: {found}");
        }
    }

    #[test]
    fn static_keys() {
        for (input, message) in [
            ("#[kv(key = \"a.b\")] struct A;", ""),
            ("#[kv(key = \"a\")] enum A { B(u8) }", ""),
            ("struct A;", "`A` has no key"),
            ("#[kv(key = \"\")] struct A;", "it is empty"),
            ("#[kv(key = \"a.{b}\")] struct A { b: u8 }", "derive `KeyValue` instead"),
            ("#[kv(key = \"a\")] struct A { #[kv(key)] b: u8 }", "derive `KeyValue` instead"),
            ("#[kv(key = \"a\")] enum A { #[kv(key)] B }", "it belongs on the enum"),
            ("#[kv(key = \"a\")] enum A { B(#[kv(key)] u8) }", "it belongs on the enum"),
            ("#[kv(key = \"a\")] union A { b: u8 }", "a union cannot be stored"),
            ("#[kv(key = \"a..b\")] struct A;", "'.' at byte 2: empty token"),
            ("#[kv(key = \"a*\")] struct A;", "'*' at byte 1"),
        ] {
            let found = static_refusal(input);
            assert_eq!(message.is_empty(), found.is_empty(), "{input}: {found}");
            assert!(found.contains(message), "{input}: {found}");
        }
    }
}
