//! Keys that consist of fields.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Error, GenericParam, Generics, LitStr, PathSegment, Result, Type, TypeGroup, TypeParen,
    TypePath,
};

use super::key_type;
use super::literal::{check, error_at};
use crate::ast::{Field, Input};
use crate::suggest::did_you_mean;

/// A key that consists of fields.
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
    /// Returns the fields, in the order of the template.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &'a Field<'a>> {
        self.tokens.iter().filter_map(|token| match token {
            Token::Field(field) => Some(*field),
            Token::Literal(_) => None,
        })
    }

    /// Returns the part before the first placeholder.
    pub(crate) fn prefix(&self) -> &str {
        self.literal.split('{').next().unwrap_or_default()
    }
}

pub(super) fn template<'a>(
    input: &'a Input<'_>,
    literal: &LitStr,
    fields: &'a [Field<'a>],
) -> Result<Template<'a>> {
    let text = literal.value();
    if !text.contains(['{', '}']) {
        // An invalid key is the more likely mistake, so it is reported first.
        check(literal, &text)?;
        let message = "the key names no field, so that there is only one: derive `StaticKeyIndexedValue` instead of \
                       `KeyValue`, or write a placeholder like `{id}`";
        return Err(Error::new(literal.span(), message));
    }
    let mut tokens = Vec::new();
    let mut stand_in = String::new();
    let mut rest = text.as_str();
    // Dots inside braces do not separate tokens, so that an error there is reported for the
    // placeholder.
    loop {
        let at = text.len() - rest.len();
        let opened = rest.find(['{', '.', '}']).unwrap_or(rest.len());
        let reject = |length: usize, message: String| {
            Err(error_at(
                literal,
                at + opened..at + opened + length,
                &format!("invalid key: {message}"),
            ))
        };
        let (token, after) = if rest[opened..].starts_with('{') {
            let Some(closed) = rest[opened..].find('}').map(|closed| opened + closed) else {
                return reject(
                    1,
                    format!("'{{' at byte {} is not closed: write `{{field}}`", at + opened),
                );
            };
            let (name, after) = (&rest[opened + 1..closed], &rest[closed + 1..]);
            if name.contains('{') {
                let message =
                    format!("'{{' at byte {} is opened twice: write `{{field}}`", at + opened);
                return reject(closed + 1 - opened, message);
            }
            if opened != 0 || !(after.is_empty() || after.starts_with('.')) {
                let message = format!(
                    "`{{{name}}}` at byte {} is a part of a token: a placeholder is a whole token, with dots around it",
                    at + opened,
                );
                return reject(closed + 1 - opened, message);
            }
            let field = field(input, fields, name)
                .map_err(|message| error_at(literal, at..at + closed + 1, &message.at(at)))?;
            if tokens
                .iter()
                .any(|token| matches!(token, Token::Field(before) if before.member == field.member))
            {
                return reject(
                    closed + 1,
                    format!("`{{{name}}}` at byte {at} is there twice: remove one"),
                );
            }
            (Token::Field(field), after)
        } else if rest[opened..].starts_with('}') {
            return reject(
                1,
                format!("'}}' at byte {} closes nothing: write `{{field}}`", at + opened),
            );
        } else {
            (Token::Literal(rest[..opened].to_owned()), &rest[opened..])
        };
        let length = rest.len() - after.len();
        match &token {
            // Has the length of the placeholder, so that positions do not change.
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
    check(literal, &stand_in)?;
    let template = Template { literal: text, tokens };
    let key = key_type(input);
    if let Some(parameter) =
        input.original.generics.type_params().find(|parameter| parameter.ident == key)
    {
        let message = format!(
            "the type parameter `{key}` has the name of the key type that is generated: rename it, or give the key \
             type another name with `key_type = Name`"
        );
        return Err(Error::new(parameter.ident.span(), message));
    }
    template.fields().try_for_each(|field| check_field(input, field))?;
    Ok(template)
}

/// A placeholder that names no field.
struct Unknown<'a> {
    name: String,
    owner: String,
    near: Option<&'a Field<'a>>,
    all: Vec<String>,
}

impl Unknown<'_> {
    fn at(&self, at: usize) -> String {
        let instead = match (&self.near, self.all.as_slice()) {
            (Some(near), _) => format!("did you mean `{{{}}}`?", near.name()),
            (None, []) => "it has none".to_owned(),
            (None, all) => {
                let all = all.iter().map(|name| format!("`{{{name}}}`")).collect::<Vec<_>>();
                format!("it has {}", all.join(", "))
            }
        };
        format!(
            "invalid key: `{{{}}}` at byte {at} names no field of `{}`; {instead}",
            self.name, self.owner
        )
    }
}

/// Returns the field that a placeholder names.
fn field<'a>(
    input: &Input<'_>,
    fields: &'a [Field<'a>],
    name: &str,
) -> std::result::Result<&'a Field<'a>, Unknown<'a>> {
    let plain = name.strip_prefix("r#").unwrap_or(name);
    let named = |name: &str| fields.iter().find(|field| field.name() == name);
    named(plain).ok_or_else(|| {
        let all = fields.iter().map(Field::name).collect::<Vec<_>>();
        // Recognizes the syntax of a format string: `{id:05}`, `{ id }`, `{self.id}`.
        let bare = plain.split(':').next().unwrap_or(plain).trim();
        let near = named(bare.strip_prefix("self.").unwrap_or(bare))
            .or_else(|| did_you_mean(plain, all.iter().map(String::as_str)).and_then(named));
        Unknown { name: name.to_owned(), owner: input.original.ident.to_string(), near, all }
    })
}

/// Rejects a field that cannot be in a key, as far as its type shows that.
fn check_field(input: &Input<'_>, field: &Field<'_>) -> Result<()> {
    if let Some(parameter) = mentioned(&input.original.generics, field.ty().to_token_stream()) {
        let message = format!(
            "the key type is not generic: a field of the key cannot have the parameter `{parameter}` in its type: \
             use a type without it, like `String` or `u64`"
        );
        return Err(Error::new_spanned(field.ty(), message));
    }
    check_prints(field)
}

/// Rejects a field that does not print or parse, or is not equal to itself, as far as its type
/// shows that.
pub(super) fn check_prints(field: &Field<'_>) -> Result<()> {
    let instead = match field.ty() {
        ty if matches!(standard_name(ty).as_deref(), Some("f32" | "f64")) => {
            "a float cannot be in a key, because floats are not equal to themselves: use an integer or a string"
        }
        Type::Path(path) => match standard_generic(path).as_deref() {
            Some("Option") => {
                "an `Option` cannot be in a key, because it does not print: use a string that may be empty, or a type \
                 of your own with `Display` and `FromStr`"
            }
            Some("Cow" | "Box" | "Rc" | "Arc" | "Result") => {
                "this cannot be in a key: use `String`, or a number"
            }
            Some("Vec" | "HashMap" | "HashSet" | "BTreeMap" | "BTreeSet" | "VecDeque") => {
                "a collection cannot be in a key, because it does not print: use a type of your own with `Display` and \
                 `FromStr`"
            }
            _ => return Ok(()),
        },
        Type::Reference(_) => "a key owns what is in it: use `String` instead of a reference",
        Type::Tuple(_) | Type::Array(_) | Type::Slice(_) | Type::Ptr(_) | Type::BareFn(_) => {
            "this cannot be in a key, because it does not print: use a type with `Display` and `FromStr`"
        }
        _ => return Ok(()),
    };
    Err(Error::new_spanned(field.ty(), instead))
}

/// Returns the name of a type that is written as a generic one of the standard library: with
/// parameters, and bare or with its path. Another type of that name, without parameters, is the
/// user's own.
fn standard_generic(path: &TypePath) -> Option<String> {
    standard(path).filter(|last| !last.arguments.is_none()).map(|last| last.ident.to_string())
}

/// Returns the name of a type that is written as one of the standard library: bare or with its
/// path.
pub(super) fn standard_name(ty: &Type) -> Option<String> {
    match ty {
        Type::Group(TypeGroup { elem, .. }) | Type::Paren(TypeParen { elem, .. }) => {
            standard_name(elem)
        }
        Type::Path(path) => standard(path).map(|last| last.ident.to_string()),
        _ => None,
    }
}

fn standard(path: &TypePath) -> Option<&PathSegment> {
    let segments = &path.path.segments;
    let is_standard = segments.len() == 1
        || segments.first().is_some_and(|first| {
            first.ident == "std" || first.ident == "core" || first.ident == "alloc"
        });
    segments.last().filter(|_| is_standard)
}

/// Returns the first of the parameters that a type mentions.
fn mentioned(generics: &Generics, ty: TokenStream) -> Option<String> {
    let names = generics
        .params
        .iter()
        .map(|parameter| match parameter {
            GenericParam::Type(parameter) => parameter.ident.to_string(),
            GenericParam::Const(parameter) => parameter.ident.to_string(),
            GenericParam::Lifetime(parameter) => parameter.lifetime.to_string(),
        })
        // In the key type, `Self` would mean the key type.
        .chain(["Self".to_owned()])
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
