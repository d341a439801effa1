//! Checks serde attributes that decide whether a written record can be read back.
//!
//! A derive sees only its own type, not the types inside. Debug builds find the faults that it
//! misses, at each write.

use proc_macro2::Span;
use syn::{Data, Error, Field, Fields, Result, Variant};

use super::template::standard_name;
use crate::ast::Input;
use crate::attr::{SerdeOption, serde_options};
use crate::codec::Codec;

/// The directions of a codec that a derive writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Directions {
    Both,
    Encode,
    /// If the type also has the other derive, that one reports the faults of the written form.
    Decode,
}

/// Rejects attributes with which a written record could not be read back, or would be read as
/// another one.
pub(crate) fn read_back(input: &Input<'_>, codec: Codec, directions: Directions) -> Result<()> {
    if codec == Codec::Protobuf {
        return Ok(());
    }
    let container = Options::of(&input.original.attrs);
    // With these options another type is written or read.
    if ["into", "from", "try_from"].into_iter().any(|name| container.get(name).is_some()) {
        return Ok(());
    }
    let is_enum = matches!(input.original.data, Data::Enum(_));
    let check = Check { codec, directions, container, is_enum };
    check.shape(&check.container)?;
    check.cases(&check.container)?;
    match &input.original.data {
        Data::Struct(data) => check.fields(&data.fields, &check.container),
        Data::Enum(data) => data.variants.iter().try_for_each(|variant| check.variant(variant)),
        Data::Union(_) => Ok(()),
    }
}

/// Rejects a field of the key that the stored record would not contain.
pub(super) fn key_field(field: &Field) -> Result<()> {
    const LEAVES_OUT: [&str; 5] =
        ["skip", "skip_serializing", "skip_deserializing", "skip_serializing_if", "flatten"];
    let options = Options::of(&field.attrs);
    match LEAVES_OUT.into_iter().find_map(|name| options.get(name)) {
        Some(option) => Err(Error::new(
            option.span,
            "a field of the key must be in the stored record, because it is compared when the record \
             is read: remove this",
        )),
        None => Ok(()),
    }
}

struct Options(Vec<SerdeOption>);

impl Options {
    fn of(attributes: &[syn::Attribute]) -> Self {
        Self(serde_options(attributes))
    }

    fn get(&self, name: &str) -> Option<&SerdeOption> {
        self.0.iter().find(|option| option.name == name)
    }

    /// Returns the option that skips an item in one direction only.
    fn skips_one_direction(&self) -> Option<&SerdeOption> {
        match (self.get("skip"), self.get("skip_serializing"), self.get("skip_deserializing")) {
            (None, Some(one), None) | (None, None, Some(one)) => Some(one),
            _ => None,
        }
    }
}

struct Check {
    codec: Codec,
    directions: Directions,
    container: Options,
    is_enum: bool,
}

impl Check {
    /// Rejects attributes that need a self-describing format.
    fn shape(&self, options: &Options) -> Result<()> {
        let is_read = self.directions != Directions::Encode;
        let shapes = ["tag", "untagged", "flatten"].into_iter().find_map(|name| options.get(name));
        match shapes.filter(|_| is_read && self.codec == Codec::Postcard) {
            Some(option) => {
                let message = format!(
                    "postcard cannot read a type with `{}`, which needs a format that describes \
                     itself: remove this, or use a codec with names, such as `json`",
                    option.name
                );
                reject(option.span, message)
            }
            None => Ok(()),
        }
    }

    fn variant(&self, variant: &Variant) -> Result<()> {
        let options = Options::of(&variant.attrs);
        self.shape(&options)?;
        self.cases(&options)?;
        self.names(&options)?;
        let is_written = self.directions != Directions::Decode;
        let skips = ["skip", "skip_serializing", "skip_deserializing"];
        if self.codec == Codec::Postcard
            && is_written
            && let Some(skip) = skips.into_iter().find_map(|name| options.get(name))
        {
            let message = "postcard stores the number of a variant, and a skipped variant shifts \
                           the numbers after it when they are read: remove this, or use a codec \
                           with names, such as `json`";
            return reject(skip.span, message);
        }
        let one = options.skips_one_direction().filter(|one| one.name == "skip_deserializing");
        if let Some(skip) = one.filter(|_| self.directions == Directions::Both) {
            return reject(skip.span, "this variant would be written and never read: write `skip`");
        }
        self.fields(&variant.fields, &options)
    }

    fn fields(&self, fields: &Fields, parent: &Options) -> Result<()> {
        fields.iter().try_for_each(|field| self.field(field, parent))
    }

    fn field(&self, field: &Field, parent: &Options) -> Result<()> {
        let options = Options::of(&field.attrs);
        self.shape(&options)?;
        self.names(&options)?;
        let one_direction = options.skips_one_direction();
        if self.directions != Directions::Decode
            && let Some(skip) = options.get("skip_serializing_if").or(one_direction)
        {
            if self.codec == Codec::Postcard {
                let message = "postcard stores no names, so a field that is left out shifts all \
                               fields after it: remove this, write `skip`, or use a codec with \
                               names, such as `json`";
                return reject(skip.span, message);
            }
            if field.ident.is_none() {
                let message = "a field without a name that is left out shifts all fields after \
                               it: give it a name, or write `skip`";
                return reject(skip.span, message);
            }
        }
        if self.directions != Directions::Both {
            return Ok(());
        }
        let name = standard_name(&field.ty);
        // serde reads a missing `Option` as `None`, unless a user's function reads it.
        let is_optional = name.as_deref() == Some("Option")
            && options.get("with").or(options.get("deserialize_with")).is_none();
        let has_default =
            [&options, parent, &self.container].iter().any(|o| o.get("default").is_some());
        let is_required = !is_optional && !has_default;
        let sometimes = options.get("skip_serializing_if");
        match one_direction.or(sometimes) {
            Some(skip)
                if skip.name == "skip_deserializing"
                    && self.container.get("deny_unknown_fields").is_some() =>
            {
                let message = "this field is written, and rejected by `deny_unknown_fields` when \
                               the record is read: write `skip`";
                return reject(skip.span, message);
            }
            Some(skip)
                if skip.name != "skip_deserializing"
                    && is_required
                    && options.get("skip").is_none() =>
            {
                let message = "this field is left out when the record is written, and required \
                               when it is read: write `skip`, or add a `default`";
                return reject(skip.span, message);
            }
            _ => {}
        }
        let is_wide = matches!(name.as_deref(), Some("u128" | "i128"));
        let is_buffered = self.container.get("untagged").is_some()
            || self.container.get("tag").is_some() && self.container.get("content").is_none();
        if self.is_enum && is_wide && is_buffered {
            let message = "serde cannot read a 128-bit number in an enum with `tag` or `untagged`: \
                           use a smaller number, or store it as a string";
            return Err(Error::new_spanned(&field.ty, message));
        }
        Ok(())
    }

    /// Rejects two names for one item, unless it can be read by both.
    fn names(&self, options: &Options) -> Result<()> {
        let Some(rename) = self.two_sided(options, "rename") else { return Ok(()) };
        if options.get("alias").is_some() {
            return Ok(());
        }
        let message = "this is written under one name and read under another: use one name, or add an `alias`";
        reject(rename, message)
    }

    /// Rejects two cases for the names of one type.
    fn cases(&self, options: &Options) -> Result<()> {
        let all = ["rename_all", "rename_all_fields"];
        match all.into_iter().find_map(|name| self.two_sided(options, name)) {
            Some(span) => {
                reject(span, "names are written in one case and read in another: use one case")
            }
            None => Ok(()),
        }
    }

    /// Returns the span of an option `name(serialize = …, deserialize = …)` whose two values
    /// differ.
    fn two_sided(&self, options: &Options, name: &str) -> Option<Span> {
        if self.directions != Directions::Both || self.codec == Codec::Postcard {
            return None;
        }
        let option = options.get(name)?;
        match option.parts().as_slice() {
            [] => None,
            [one, other] if one == other => None,
            _ => Some(option.span),
        }
    }
}

fn reject<T>(span: Span, message: impl std::fmt::Display) -> Result<T> {
    Err(Error::new(span, message))
}
