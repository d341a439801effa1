//! Parses the content of `#[kv(…)]`, as it was written.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::meta::ParseNestedMeta;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Attribute, Error, Ident, Lit, LitStr, Path, Result, Token};

use crate::suggest::did_you_mean;

/// The options of a type.
#[derive(Default)]
pub(crate) struct ContainerAttrs {
    /// `key = "…"`.
    pub(crate) key: Option<LitStr>,
    /// `bucket = "…"`.
    pub(crate) bucket: Option<LitStr>,
    /// `validate = path`.
    pub(crate) validate: Option<Path>,
    /// `ttl = "…"`.
    pub(crate) ttl: Option<LitStr>,
    /// `codec = name`.
    pub(crate) codec: Option<Ident>,
    /// `key_type = Name`.
    pub(crate) key_type: Option<Ident>,
    /// `key_serde`.
    pub(crate) key_serde: Option<Span>,
    /// `crate = path`.
    pub(crate) root: Option<Path>,
    /// The first option that belongs to a record, and has no meaning on any other type.
    pub(crate) of_a_record: Option<Span>,
    /// `true` if the user meant to give a bucket, however it was written. For the stand-ins.
    pub(crate) names_bucket: bool,
    /// `true` if the user meant to give a codec.
    pub(crate) names_codec: bool,
}

const CONTAINER_OPTIONS: [&str; 8] =
    ["key", "bucket", "validate", "ttl", "codec", "key_type", "key_serde", "crate"];

const FIELD_OPTIONS: [&str; 2] = ["key", "value"];

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

/// Returns the options of a type, and the first mistake in them. The options contain everything
/// that could be read, for the stand-ins.
pub(crate) fn container(attributes: &[Attribute]) -> (ContainerAttrs, Result<()>) {
    let mut attrs = ContainerAttrs::default();
    let mut read = Ok(());
    for attribute in attributes.iter().filter(|attribute| is_kv(attribute)) {
        if let Ok(literal) = attribute.parse_args::<LitStr>() {
            let message = format!("which option is this? Write `key = {}`", literal.token());
            read = read.and(Err(Error::new(literal.span(), message)));
            continue;
        }
        let parsed = attribute.parse_nested_meta(|meta| {
            if let Err(error) = attrs.read(&meta) {
                read = std::mem::replace(&mut read, Ok(())).and(Err(error));
                // Skips the rest of the option, so that the options after it are read.
                while !meta.input.is_empty() && !meta.input.peek(Token![,]) {
                    meta.input.parse::<TokenTree>()?;
                }
            }
            Ok(())
        });
        read = read.and(parsed);
    }
    (attrs, read)
}

impl ContainerAttrs {
    fn read(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let option = option(meta);
        let meant = did_you_mean(&option, CONTAINER_OPTIONS).unwrap_or_default();
        if option != "crate" && CONTAINER_OPTIONS.contains(&option.as_str()) {
            self.of_a_record.get_or_insert(meta.path.span());
        }
        self.names_bucket |= meant == "bucket";
        self.names_codec |= meant == "codec";
        match option.as_str() {
            "key" => once(&mut self.key, text(meta, "key", "…")?, meta),
            "bucket" => once(&mut self.bucket, text(meta, "bucket", "…")?, meta),
            "ttl" => once(&mut self.ttl, text(meta, "ttl", "30s")?, meta),
            "validate" => {
                once(&mut self.validate, path(meta, "validate", "path::to::function")?, meta)
            }
            "crate" => once(&mut self.root, root(meta)?, meta),
            "codec" => once(&mut self.codec, name(meta, "codec", "json")?, meta),
            "key_type" => once(&mut self.key_type, name(meta, "key_type", "Name")?, meta),
            "key_serde" => {
                if meta.input.peek(Token![=]) {
                    return Err(meta.error("`key_serde` takes no value: write `key_serde`"));
                }
                once(&mut self.key_serde, meta.path.span(), meta)
            }
            "value" => Err(meta
                .error("`value` belongs on a field: it marks the value of a key and value pair")),
            other => Err(meta.error(unknown(other, &CONTAINER_OPTIONS))),
        }
    }
}

/// Returns the option of a field.
pub(crate) fn field(attributes: &[Attribute]) -> Result<Option<Role>> {
    let mut role = None;
    for attribute in attributes.iter().filter(|attribute| is_kv(attribute)) {
        let is_empty = attribute.meta.require_list().is_ok_and(|list| list.tokens.is_empty());
        if is_empty || attribute.parse_args::<Lit>().is_ok() {
            let message = "write `#[kv(key)]` on the field that is the key, or `#[kv(value)]` on the value of a pair";
            return Err(Error::new_spanned(&attribute.meta, message));
        }
        attribute.parse_nested_meta(|meta| {
            let span = meta.path.span();
            let (name, found) = match option(&meta).as_str() {
                "key" => ("key", Role::Key(span)),
                "value" => ("value", Role::Value(span)),
                other if CONTAINER_OPTIONS.contains(&other) => {
                    return Err(meta.error(format!("`{other}` belongs on the type, not on a field")));
                }
                other => return Err(meta.error(unknown(other, &FIELD_OPTIONS))),
            };
            if meta.input.peek(Token![=]) {
                let message = format!(
                    "`{name}` of a field takes no value: write `#[kv({name})]`, or put `#[kv(key = \"…\")]` on the type"
                );
                return Err(meta.error(message));
            }
            if let (Some(Role::Key(_)), Role::Value(_)) | (Some(Role::Value(_)), Role::Key(_)) =
                (role, found)
            {
                return Err(meta.error("a field is the key or the value, not both: remove one"));
            }
            once(&mut role, found, &meta)
        })?;
    }
    Ok(role)
}

/// Rejects `#[kv(…)]` on an item on which it has no meaning.
pub(crate) fn none(attributes: &[Attribute], instead: &str) -> Result<()> {
    match attributes.iter().find(|attribute| is_kv(attribute)) {
        Some(attribute) => {
            Err(Error::new(attribute.path().span(), format!("`kv` has no meaning here: {instead}")))
        }
        None => Ok(()),
    }
}

/// A serde option: `name`, `name = value` or `name(parts)`.
pub(crate) struct SerdeOption {
    pub(crate) name: String,
    pub(crate) span: Span,
    value: Vec<TokenTree>,
}

/// Returns the options given to serde. Leaves out options that serde rejects, because serde reports
/// them.
pub(crate) fn serde_options(attributes: &[Attribute]) -> Vec<SerdeOption> {
    let lists = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("serde"))
        .filter_map(|attribute| attribute.meta.require_list().ok());
    lists.flat_map(|list| SerdeOption::all(list.tokens.clone())).collect()
}

impl SerdeOption {
    fn all(tokens: TokenStream) -> Vec<Self> {
        let tokens = tokens.into_iter().collect::<Vec<_>>();
        let options = tokens
            .split(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ','));
        options
            .filter_map(|option| match option {
                [TokenTree::Ident(name), value @ ..] => {
                    Some(Self { name: name.to_string(), span: name.span(), value: value.to_vec() })
                }
                _ => None,
            })
            .collect()
    }

    /// Returns the values of the parts of `name(part = value, …)`, and nothing for any other form.
    pub(crate) fn parts(&self) -> Vec<String> {
        let [TokenTree::Group(group)] = self.value.as_slice() else { return Vec::new() };
        let parts = Self::all(group.stream());
        parts.iter().map(|part| part.value.iter().map(ToString::to_string).collect()).collect()
    }
}

/// Parses the string of `option = "…"`.
fn text(meta: &ParseNestedMeta<'_>, option: &str, example: &str) -> Result<LitStr> {
    given(meta, option, &format!("\"{example}\""))?;
    let message = format!(
        "`{option}` is a string literal, not a constant or a macro, so that it is checked here: \
         write `{option} = \"{example}\"`"
    );
    let literal = whole::<LitStr>(meta.value()?, &message)?;
    if literal.suffix().is_empty() { Ok(literal) } else { Err(Error::new(literal.span(), message)) }
}

/// Parses the path of `option = path`.
fn path(meta: &ParseNestedMeta<'_>, option: &str, example: &str) -> Result<Path> {
    given(meta, option, example)?;
    let value = meta.value()?;
    reject_string(value, option)?;
    whole(value, &format!("`{option}` is a path: write `{option} = {example}`"))
}

/// Parses the path of `crate = path`, which has no parameters.
fn root(meta: &ParseNestedMeta<'_>) -> Result<Path> {
    let root = path(meta, "crate", "path::to::shizuku_kv")?;
    match root.segments.iter().find(|segment| !segment.arguments.is_none()) {
        Some(segment) => Err(Error::new(
            segment.span(),
            "a crate has no parameters: write `crate = path::to::shizuku_kv`",
        )),
        None => Ok(root),
    }
}

/// Parses the name of `option = name`.
fn name(meta: &ParseNestedMeta<'_>, option: &str, example: &str) -> Result<Ident> {
    given(meta, option, example)?;
    let value = meta.value()?;
    reject_string(value, option)?;
    whole(value, &format!("`{option}` is a name: write `{option} = {example}`"))
}

/// Parses everything up to the next comma.
fn whole<T: Parse>(value: ParseStream<'_>, message: &str) -> Result<T> {
    let span = value.span();
    let reject = |_| Error::new(span, message);
    let found = value.fork().parse::<T>().map_err(reject)?;
    value.parse::<T>()?;
    // A literal or a name after the value is a forgotten comma.
    if value.is_empty() || value.peek(Token![,]) || value.peek(Ident::peek_any) || value.peek(Lit) {
        Ok(found)
    } else if value.peek(Token![;]) {
        Err(value.error("options are separated by commas: write `,` instead of `;`"))
    } else {
        Err(Error::new(span, message))
    }
}

fn given(meta: &ParseNestedMeta<'_>, option: &str, example: &str) -> Result<()> {
    if meta.input.peek(Token![=]) {
        Ok(())
    } else {
        Err(meta.error(format!("`{option}` needs a value: write `{option} = {example}`")))
    }
}

/// Rejects a path in a string, which is the syntax of other macros.
fn reject_string(value: syn::parse::ParseStream<'_>, option: &str) -> Result<()> {
    match value.fork().parse::<LitStr>() {
        Ok(literal) => {
            let message = format!("no quotes around this: write `{option} = {}`", literal.value());
            Err(Error::new(literal.span(), message))
        }
        Err(_) => Ok(()),
    }
}

fn option(meta: &ParseNestedMeta<'_>) -> String {
    match meta.path.get_ident() {
        Some(ident) => ident.unraw().to_string(),
        None => meta.path.to_token_stream().to_string().replace(' ', ""),
    }
}

fn once<T>(target: &mut Option<T>, value: T, meta: &ParseNestedMeta<'_>) -> Result<()> {
    if target.is_some() {
        return Err(meta.error("this option is given twice: remove one"));
    }
    *target = Some(value);
    Ok(())
}

fn unknown(option: &str, known: &[&str]) -> String {
    // The path is an option of another attribute, or was not meant as an option.
    if let Some((_, last)) = option.rsplit_once("::") {
        let last = did_you_mean(last, known.iter().copied()).unwrap_or("key");
        return format!("an option is one name, not the path `{option}`: write `{last}`");
    }
    match did_you_mean(option, known.iter().copied()) {
        Some(near) => format!("unknown option `{option}`, did you mean `{near}`?"),
        None => {
            let options =
                known.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
            format!("unknown option `{option}`; the options here are {options}")
        }
    }
}
