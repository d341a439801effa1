//! Limits on what bytes can make a deserializer do, for formats whose own are missing or too wide.
//!
//! postcard follows any nesting, and rmp-serde that of enums, so that bytes alone could exhaust the stack of a recursive
//! type, and with it end the process. Both pass on a length as it is written, for which a type may reserve memory. And
//! elements that take no bytes, as those of a `Vec<()>` in postcard, can be as many as a length can say.
//!
//! On the way, this notes what the type itself declares. A message may name that, whoever wrote it.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

/// How deep values may nest; options and enums count as well. In a debug build a struct of twenty fields takes up to
/// 15 KB of stack for each, and the threads of tokio have 2 MB.
pub(super) const LEVELS: usize = 100;

/// How many elements there may be besides those that take a byte or more.
pub(super) const EMPTY_ELEMENTS: usize = 1 << 16;

/// How many of the structs and enums that failed are remembered.
const DECLARATIONS: usize = LEVELS;

/// The limits for one value, and what was noted while it was read.
pub(super) struct Bounds {
    input: usize,
    depth: Cell<usize>,
    elements: Cell<usize>,
    refusal: Cell<Option<&'static str>>,
    asked: Cell<&'static str>,
    declared: RefCell<Vec<Declaration>>,
}

type Declaration = (&'static str, &'static [&'static str]);

impl Bounds {
    /// For a value of this many bytes.
    pub(super) fn new(input: usize) -> Self {
        Self {
            input,
            depth: Cell::new(0),
            elements: Cell::new(input.saturating_add(EMPTY_ELEMENTS)),
            refusal: Cell::new(None),
            asked: Cell::new(""),
            declared: RefCell::new(Vec::new()),
        }
    }

    /// Reads a value within the limits.
    pub(super) fn read<'de, T, D>(&self, deserializer: D) -> Result<T, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        T::deserialize(Bounded { inner: deserializer, bounds: self, is_collection: false })
    }

    /// The limit that was met, if one was. The error itself cannot say so: what it says could be the type's words.
    pub(super) fn refusal(&self) -> Option<&'static str> {
        self.refusal.get()
    }

    /// What was asked for last, where that was a number or a boolean; else nothing.
    #[cfg(feature = "messagepack")]
    pub(super) fn asked(&self) -> &'static str {
        self.asked.get()
    }

    /// Whether the types that failed declare this word in a name: of themselves, a field or a variant.
    #[cfg(feature = "messagepack")]
    pub(super) fn is_declared(&self, word: &str) -> bool {
        use super::serde_message::words;
        let declared = self.declared.borrow();
        let mut names = declared.iter().flat_map(|(name, parts)| parts.iter().chain([name]));
        names.any(|name| words(&name.to_lowercase()).any(|part| part == word))
    }

    fn refuse<E: Error>(&self, reason: &'static str) -> E {
        self.refusal.set(Some(reason));
        E::custom(reason)
    }

    /// Goes one level deeper for a visit.
    fn descend<T, E: Error>(&self, visit: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let depth = self.depth.get();
        if depth == LEVELS {
            return Err(self.refuse("nested too deeply"));
        }
        self.depth.set(depth + 1);
        let visited = visit();
        self.depth.set(depth);
        visited
    }

    /// One element more.
    fn count<E: Error>(&self) -> Result<(), E> {
        match self.elements.get().checked_sub(1) {
            Some(left) => {
                self.elements.set(left);
                Ok(())
            }
            None => Err(self.refuse("too many elements")),
        }
    }

    /// How many elements to expect, unless there cannot be as many.
    fn plausible(&self, length: Option<usize>) -> Option<usize> {
        length.filter(|length| *length <= self.input)
    }

    /// Remembers what a type that failed declares.
    fn declaring<T, E>(&self, declaration: Declaration, outcome: Result<T, E>) -> Result<T, E> {
        if outcome.is_err() {
            let mut declared = self.declared.borrow_mut();
            if declared.len() < DECLARATIONS {
                declared.push(declaration);
            }
        }
        outcome
    }
}

/// A deserializer, or one of the parts it and the type hand to each other, within limits.
struct Bounded<'b, I> {
    inner: I,
    bounds: &'b Bounds,
    /// Whether the bytes say how many elements there are, and not the type.
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
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.bounds.asked.set($asked);
            let visitor = self.wrap(visitor);
            self.inner.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Bounded<'_, D> {
    type Error = D::Error;

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

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.bounds.asked.set("");
        let visitor = self.wrap_collection(visitor);
        self.inner.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.bounds.asked.set("");
        let visitor = self.wrap_collection(visitor);
        self.inner.deserialize_map(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.inner.deserialize_tuple(length, visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds.declaring((name, &[]), self.inner.deserialize_unit_struct(name, visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds.declaring((name, &[]), self.inner.deserialize_newtype_struct(name, visitor))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
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
    ) -> Result<V::Value, D::Error> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds.declaring((name, fields), self.inner.deserialize_struct(name, fields, visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.bounds.asked.set("");
        let visitor = self.wrap(visitor);
        self.bounds
            .declaring((name, variants), self.inner.deserialize_enum(name, variants, visitor))
    }
}

macro_rules! visit {
    ($($method:ident $value:ty)*) => {$(
        fn $method<E: Error>(self, value: $value) -> Result<V::Value, E> {
            self.inner.$method(value)
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
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let deserializer = self.wrap(deserializer);
        self.bounds.descend(|| self.inner.visit_some(deserializer))
    }

    /// No level: a type cannot be made of itself alone.
    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<V::Value, D::Error> {
        let deserializer = self.wrap(deserializer);
        self.inner.visit_newtype_struct(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> Result<V::Value, A::Error> {
        let elements =
            Bounded { inner: elements, bounds: self.bounds, is_collection: self.is_collection };
        self.bounds.descend(|| self.inner.visit_seq(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        let entries =
            Bounded { inner: entries, bounds: self.bounds, is_collection: self.is_collection };
        self.bounds.descend(|| self.inner.visit_map(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        let variant = self.wrap(variant);
        self.bounds.descend(|| self.inner.visit_enum(variant))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        let seed = self.wrap(seed);
        let element = self.inner.next_element_seed(seed)?;
        if self.is_collection && element.is_some() {
            self.bounds.count()?;
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.bounds.plausible(self.inner.size_hint())
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let seed = self.wrap(seed);
        let key = self.inner.next_key_seed(seed)?;
        if self.is_collection && key.is_some() {
            self.bounds.count()?;
        }
        Ok(key)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        let seed = self.wrap(seed);
        self.inner.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.bounds.plausible(self.inner.size_hint())
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Bounded<'b, A> {
    type Error = A::Error;
    type Variant = Bounded<'b, A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Self::Variant), A::Error> {
        let (bounds, seed) = (self.bounds, self.wrap(seed));
        let (value, variant) = self.inner.variant_seed(seed)?;
        Ok((value, Bounded { inner: variant, bounds, is_collection: false }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        let seed = self.wrap(seed);
        self.inner.newtype_variant_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.wrap(visitor);
        self.inner.tuple_variant(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.wrap(visitor);
        self.bounds.declaring(("", fields), self.inner.struct_variant(fields, visitor))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let deserializer = self.wrap(deserializer);
        self.inner.deserialize(deserializer)
    }
}
