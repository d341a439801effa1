//! Limits on a deserializer's work, for formats whose own limits are missing or too wide.
//!
//! postcard follows any nesting, and rmp-serde any nesting of enums. Bytes alone could exhaust the
//! stack of a recursive type, and end the process. Both pass on a length as it is written, for
//! which a type may reserve memory. Elements that need no bytes, such as those of a `Vec<()>` in
//! postcard, can be as many as a length can state.
//!
//! This also records the names that the type itself declares, which a message may contain, and
//! whether the type's own code wrote a message. The deserializer sees its own errors, and the type
//! sees [`TaggedError`].

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, Expected, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

/// Maximum depth of nesting; options and enums count as well. In a debug build a struct of twenty
/// fields takes up to 15 KB of stack for each level, and the threads of tokio have 2 MB.
pub(super) const LEVELS: usize = 100;

/// Maximum number of elements in addition to those that need a byte or more.
pub(super) const EMPTY_ELEMENTS: usize = 1 << 16;

/// Maximum number of recorded declarations of failed structs and enums.
const DECLARATIONS: usize = LEVELS;

/// The limits for one value, and the records of its reading.
pub(super) struct Bounds {
    input: usize,
    depth: Cell<usize>,
    elements: Cell<usize>,
    rejection: Cell<Option<&'static str>>,
    asked: Cell<&'static str>,
    is_custom: Cell<bool>,
    declared: RefCell<Vec<Declaration>>,
}

type Declaration = (&'static str, &'static [&'static str]);

/// Returns the words of a text.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

impl Bounds {
    /// Returns the limits for a value of this many bytes.
    pub(super) fn new(input: usize) -> Self {
        Self {
            input,
            depth: Cell::new(0),
            elements: Cell::new(input.saturating_add(EMPTY_ELEMENTS)),
            rejection: Cell::new(None),
            asked: Cell::new(""),
            is_custom: Cell::new(false),
            declared: RefCell::new(Vec::new()),
        }
    }

    /// Reads a value within the limits.
    pub(super) fn read<'de, T, D>(&self, deserializer: D) -> Result<T, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        self.note(T::deserialize(Bounded {
            inner: deserializer,
            bounds: self,
            is_collection: false,
        }))
    }

    /// Returns the exceeded limit, if any. The error itself cannot carry it, because its text could
    /// be the type's own.
    #[cfg(any(feature = "messagepack", feature = "postcard"))]
    pub(super) fn rejection(&self) -> Option<&'static str> {
        self.rejection.get()
    }

    /// Returns the kind of the last requested value if it was a number or a boolean, otherwise an
    /// empty string.
    #[cfg(feature = "messagepack")]
    pub(super) fn asked(&self) -> &'static str {
        self.asked.get()
    }

    /// Returns true if the type's own code wrote a message, which can quote the value in any form.
    pub(super) fn is_custom(&self) -> bool {
        self.is_custom.get()
    }

    /// Passes on an outcome of the type, and records whether its own code wrote the message.
    fn note<T, E>(&self, outcome: Result<T, TaggedError<E>>) -> Result<T, E> {
        outcome.map_err(|tagged| {
            self.is_custom.set(self.is_custom.get() || tagged.is_custom);
            tagged.error
        })
    }

    /// Returns true if the failed types declare this word in a name: their own, a field's or a
    /// variant's.
    pub(super) fn is_declared(&self, word: &str) -> bool {
        let declared = self.declared.borrow();
        let mut names = declared.iter().flat_map(|(name, parts)| parts.iter().chain([name]));
        names.any(|name| words(&name.to_lowercase()).any(|part| part == word))
    }

    fn reject<E: Error>(&self, reason: &'static str) -> E {
        self.rejection.set(Some(reason));
        E::custom(reason)
    }

    /// Visits one level deeper.
    fn descend<T, E: Error>(&self, visit: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let depth = self.depth.get();
        if depth == LEVELS {
            return Err(self.reject("nested too deeply"));
        }
        self.depth.set(depth + 1);
        let visited = visit();
        self.depth.set(depth);
        visited
    }

    /// Counts one more element.
    fn count<E: Error>(&self) -> Result<(), E> {
        match self.elements.get().checked_sub(1) {
            Some(left) => {
                self.elements.set(left);
                Ok(())
            }
            None => Err(self.reject("too many elements")),
        }
    }

    /// Returns the expected number of elements, unless the input is too short for it.
    fn plausible(&self, length: Option<usize>) -> Option<usize> {
        length.filter(|length| *length <= self.input)
    }

    /// Records the names that a failed type declares.
    fn declaring<T, E>(
        &self,
        declaration: Declaration,
        outcome: Result<T, E>,
    ) -> Result<T, TaggedError<E>> {
        if outcome.is_err() {
            let mut declared = self.declared.borrow_mut();
            if declared.len() < DECLARATIONS {
                declared.push(declaration);
            }
        }
        tagged(outcome)
    }
}

/// An error as the type sees it: the deserializer's, or one of the type's own code.
#[derive(Debug)]
struct TaggedError<E> {
    error: E,
    is_custom: bool,
}

impl<E> From<E> for TaggedError<E> {
    fn from(error: E) -> Self {
        Self { error, is_custom: false }
    }
}

fn tagged<T, E>(outcome: Result<T, E>) -> Result<T, TaggedError<E>> {
    outcome.map_err(TaggedError::from)
}

impl<E: fmt::Display> fmt::Display for TaggedError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<E: std::error::Error> std::error::Error for TaggedError<E> {}

/// Only `custom` has a message of the type's own.
impl<E: Error> Error for TaggedError<E> {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { error: E::custom(message), is_custom: true }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        E::invalid_type(unexpected, expected).into()
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        E::invalid_value(unexpected, expected).into()
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        E::invalid_length(length, expected).into()
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        E::unknown_variant(variant, expected).into()
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        E::unknown_field(field, expected).into()
    }

    fn missing_field(field: &'static str) -> Self {
        E::missing_field(field).into()
    }

    fn duplicate_field(field: &'static str) -> Self {
        E::duplicate_field(field).into()
    }
}

/// A deserializer within limits, or one of the parts that it and the type pass to each other.
struct Bounded<'b, I> {
    inner: I,
    bounds: &'b Bounds,
    /// True if the bytes, and not the type, state the number of elements.
    is_collection: bool,
}

impl<'b, I> Bounded<'b, I> {
    fn wrap<J>(&self, inner: J) -> Bounded<'b, J> {
        Bounded { inner, bounds: self.bounds, is_collection: false }
    }

    fn wrap_collection<J>(&self, inner: J) -> Bounded<'b, J> {
        Bounded { inner, bounds: self.bounds, is_collection: true }
    }
}

macro_rules! deserialize {
    ($($method:ident $asked:literal)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TaggedError<D::Error>> {
            self.bounds.asked.set($asked);
            let visitor = self.wrap(visitor);
            tagged(self.inner.$method(visitor))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Bounded<'_, D> {
    type Error = TaggedError<D::Error>;

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }

    deserialize! {
        deserialize_bool "a boolean"
        deserialize_i8 "i8"
        deserialize_i16 "i16"
        deserialize_i32 "i32"
        deserialize_i64 "i64"
        deserialize_i128 "i128"
        deserialize_u8 "u8"
        deserialize_u16 "u16"
        deserialize_u32 "u32"
        deserialize_u64 "u64"
        deserialize_u128 "u128"
        deserialize_f32 "f32"
        deserialize_f64 "f64"
        deserialize_any ""
        deserialize_char ""
        deserialize_str ""
        deserialize_string ""
        deserialize_bytes ""
        deserialize_byte_buf ""
        deserialize_option ""
        deserialize_unit ""
        deserialize_identifier ""
        deserialize_ignored_any ""
    }

    fn deserialize_seq<V: Visitor<'de>>(
        self,
        visitor: V,
    ) -> Result<V::Value, TaggedError<D::Error>> {
        self.bounds.asked.set("");
        let visitor = self.wrap_collection(visitor);
        tagged(self.inner.deserialize_seq(visitor))
    }

    fn deserialize_map<V: Visitor<'de>>(
        self,
        visitor: V,
    ) -> Result<V::Value, TaggedError<D::Error>> {
        self.bounds.asked.set("");
        let visitor = self.wrap_collection(visitor);
        tagged(self.inner.deserialize_map(visitor))
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, TaggedError<D::Error>> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        tagged(self.inner.deserialize_tuple(length, visitor))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TaggedError<D::Error>> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds.declaring((name, &[]), self.inner.deserialize_unit_struct(name, visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TaggedError<D::Error>> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds.declaring((name, &[]), self.inner.deserialize_newtype_struct(name, visitor))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, TaggedError<D::Error>> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds
            .declaring((name, &[]), self.inner.deserialize_tuple_struct(name, length, visitor))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TaggedError<D::Error>> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds.declaring((name, fields), self.inner.deserialize_struct(name, fields, visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TaggedError<D::Error>> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds
            .declaring((name, variants), self.inner.deserialize_enum(name, variants, visitor))
    }
}

macro_rules! visit {
    ($($method:ident $value:ty)*) => {$(
        fn $method<E: Error>(self, value: $value) -> Result<V::Value, E> {
            let outcome = self.inner.$method(value);
            self.bounds.note(outcome)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Bounded<'_, V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(formatter)
    }

    visit! {
        visit_bool bool
        visit_i8 i8
        visit_i16 i16
        visit_i32 i32
        visit_i64 i64
        visit_i128 i128
        visit_u8 u8
        visit_u16 u16
        visit_u32 u32
        visit_u64 u64
        visit_u128 u128
        visit_f32 f32
        visit_f64 f64
        visit_char char
        visit_str &str
        visit_borrowed_str &'de str
        visit_string String
        visit_bytes &[u8]
        visit_borrowed_bytes &'de [u8]
        visit_byte_buf Vec<u8>
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        let outcome = self.inner.visit_none();
        self.bounds.note(outcome)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        let outcome = self.inner.visit_unit();
        self.bounds.note(outcome)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let deserializer = self.wrap(deserializer);
        self.bounds.descend(|| self.bounds.note(self.inner.visit_some(deserializer)))
    }

    /// Not a level, because a type cannot contain only itself.
    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<V::Value, D::Error> {
        let deserializer = self.wrap(deserializer);
        self.bounds.note(self.inner.visit_newtype_struct(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> Result<V::Value, A::Error> {
        let elements =
            Bounded { inner: elements, bounds: self.bounds, is_collection: self.is_collection };
        self.bounds.descend(|| self.bounds.note(self.inner.visit_seq(elements)))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        let entries =
            Bounded { inner: entries, bounds: self.bounds, is_collection: self.is_collection };
        self.bounds.descend(|| self.bounds.note(self.inner.visit_map(entries)))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        let variant = self.wrap(variant);
        self.bounds.descend(|| self.bounds.note(self.inner.visit_enum(variant)))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Bounded<'_, A> {
    type Error = TaggedError<A::Error>;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, TaggedError<A::Error>> {
        let seed = self.wrap(seed);
        let element = tagged(self.inner.next_element_seed(seed))?;
        if self.is_collection && element.is_some() {
            self.bounds.count::<TaggedError<A::Error>>()?;
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.bounds.plausible(self.inner.size_hint())
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Bounded<'_, A> {
    type Error = TaggedError<A::Error>;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, TaggedError<A::Error>> {
        let seed = self.wrap(seed);
        let key = tagged(self.inner.next_key_seed(seed))?;
        if self.is_collection && key.is_some() {
            self.bounds.count::<TaggedError<A::Error>>()?;
        }
        Ok(key)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<T::Value, TaggedError<A::Error>> {
        let seed = self.wrap(seed);
        tagged(self.inner.next_value_seed(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.bounds.plausible(self.inner.size_hint())
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Bounded<'b, A> {
    type Error = TaggedError<A::Error>;
    type Variant = Bounded<'b, A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Self::Variant), TaggedError<A::Error>> {
        let (bounds, seed) = (self.bounds, self.wrap(seed));
        let (value, variant) = tagged(self.inner.variant_seed(seed))?;
        Ok((value, Bounded { inner: variant, bounds, is_collection: false }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Bounded<'_, A> {
    type Error = TaggedError<A::Error>;

    fn unit_variant(self) -> Result<(), TaggedError<A::Error>> {
        tagged(self.inner.unit_variant())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, TaggedError<A::Error>> {
        let seed = self.wrap(seed);
        tagged(self.inner.newtype_variant_seed(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, TaggedError<A::Error>> {
        let visitor = self.wrap(visitor);
        tagged(self.inner.tuple_variant(length, visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TaggedError<A::Error>> {
        let visitor = self.wrap(visitor);
        self.bounds.declaring(("", fields), self.inner.struct_variant(fields, visitor))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let deserializer = self.wrap(deserializer);
        self.bounds.note(self.inner.deserialize(deserializer))
    }
}
