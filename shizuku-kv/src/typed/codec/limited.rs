//! Limits on written values, so that they can be read back: the counterpart of the limits of a
//! format's reader.
//!
//! A serializer accepts more than its deserializer. serde_json writes `null` for a number that is
//! not finite, and for a `Some` of an empty value, which reads as `None`. It writes any depth of
//! nesting, and reads 127 levels. postcard has no names, so a skipped field shifts all later
//! fields. Such a value would be stored and never read, or read as another one. It is an error of
//! the write instead, at the cost of a few comparisons.

use std::cell::Cell;

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// The distinctions that the reader of a format makes, and its limits.
#[derive(Clone, Copy)]
pub(super) struct Format {
    /// Maximum number of levels of nesting.
    pub(super) levels: usize,
    /// Whether a `Some` and a variant without content are levels as well.
    pub(super) counts_leaves: bool,
    /// Maximum number of elements beyond one for each byte, if the reader counts them.
    pub(super) empty_elements: Option<usize>,
    /// Whether the format has numbers that are not finite.
    pub(super) has_infinity: bool,
    /// Whether `()` is written like `None`.
    pub(super) unit_is_none: bool,
    /// Whether a unit struct is written like `None`.
    pub(super) unit_struct_is_none: bool,
    /// Whether fields have names, so that one can be left out.
    pub(super) has_names: bool,
}

/// The limits for one value, and the counts while it is written.
pub(super) struct Limits {
    format: Format,
    depth: Cell<usize>,
    elements: Cell<usize>,
    refusal: Cell<Option<&'static str>>,
}

impl Limits {
    pub(super) fn new(format: Format) -> Self {
        Self { format, depth: Cell::new(0), elements: Cell::new(0), refusal: Cell::new(None) }
    }

    /// The value, to be given to a serializer in its place.
    pub(super) fn around<'l, T: ?Sized>(&'l self, value: &'l T) -> Value<'l, T> {
        Value { inner: value, limits: self, is_in_some: false }
    }

    /// Returns the exceeded limit, if any. Once the value is written, its length is compared as
    /// well. The error of the serializer cannot carry the limit, because its text could be the
    /// type's own.
    pub(super) fn refusal(&self, written: Option<usize>) -> Option<&'static str> {
        let most = self
            .format
            .empty_elements
            .zip(written)
            .map(|(empty, length)| length.saturating_add(empty));
        let has_too_many = most.is_some_and(|most| self.elements.get() > most);
        self.refusal.get().or(has_too_many.then_some("too many elements that take no bytes"))
    }

    fn refuse<T, E: Error>(&self, reason: &'static str) -> Result<T, E> {
        self.refusal.set(Some(reason));
        Err(E::custom(reason))
    }

    fn enter<E: Error>(&self, levels: usize) -> Result<(), E> {
        let depth = self.depth.get() + levels;
        if depth > self.format.levels {
            return self.refuse("nested too deeply");
        }
        self.depth.set(depth);
        Ok(())
    }

    fn leave(&self, levels: usize) {
        self.depth.set(self.depth.get().saturating_sub(levels));
    }

    /// Number of levels of a value without content.
    fn leaf(&self) -> usize {
        usize::from(self.format.counts_leaves)
    }

    fn count(&self) {
        self.elements.set(self.elements.get() + 1);
    }

    fn number<E: Error>(&self, is_finite: bool) -> Result<(), E> {
        if is_finite || self.format.has_infinity {
            return Ok(());
        }
        self.refuse("a number is not finite, for which JSON has no form")
    }

    fn skipped<E: Error>(&self) -> Result<(), E> {
        if self.format.has_names {
            return Ok(());
        }
        self.refuse(
            "a field is left out by `skip_serializing_if`, and without names those after it would be read in its place",
        )
    }
}

/// A part of the value, written within limits.
pub(super) struct Value<'l, T: ?Sized> {
    inner: &'l T,
    limits: &'l Limits,
    is_in_some: bool,
}

impl<T: Serialize + ?Sized> Serialize for Value<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { inner, limits, is_in_some } = *self;
        inner.serialize(Limited { inner: serializer, limits, is_in_some })
    }
}

/// A serializer within limits.
struct Limited<'l, S> {
    inner: S,
    limits: &'l Limits,
    /// Whether the value is the whole content of a `Some`.
    is_in_some: bool,
}

/// A part of a serializer that takes the elements of a container, which is this many levels deep.
struct Container<'l, C> {
    inner: C,
    limits: &'l Limits,
    levels: usize,
}

impl<'l, S: Serializer> Limited<'l, S> {
    /// Opens a container.
    fn open<C>(
        self,
        levels: usize,
        open: impl FnOnce(S) -> Result<C, S::Error>,
    ) -> Result<Container<'l, C>, S::Error> {
        let limits = self.limits;
        limits.enter(levels)?;
        open(self.inner).map(|inner| Container { inner, limits, levels })
    }

    /// Rejects a value in a `Some` that a reader takes for `None`.
    fn distinct(&self, is_none: bool) -> Result<(), S::Error> {
        if self.is_in_some && is_none {
            return self.limits.refuse("a `Some` holds a value that is read as `None`");
        }
        Ok(())
    }
}

macro_rules! serialize {
    ($($method:ident $value:ty)*) => {$(
        fn $method(self, value: $value) -> Result<S::Ok, S::Error> {
            self.inner.$method(value)
        }
    )*};
}

impl<'l, S: Serializer> Serializer for Limited<'l, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Container<'l, S::SerializeSeq>;
    type SerializeTuple = Container<'l, S::SerializeTuple>;
    type SerializeTupleStruct = Container<'l, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Container<'l, S::SerializeTupleVariant>;
    type SerializeMap = Container<'l, S::SerializeMap>;
    type SerializeStruct = Container<'l, S::SerializeStruct>;
    type SerializeStructVariant = Container<'l, S::SerializeStructVariant>;

    serialize! {
        serialize_bool bool
        serialize_i8 i8
        serialize_i16 i16
        serialize_i32 i32
        serialize_i64 i64
        serialize_i128 i128
        serialize_u8 u8
        serialize_u16 u16
        serialize_u32 u32
        serialize_u64 u64
        serialize_u128 u128
        serialize_char char
        serialize_str &str
        serialize_bytes &[u8]
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        self.limits.number(value.is_finite())?;
        self.inner.serialize_f32(value)
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        self.limits.number(value.is_finite())?;
        self.inner.serialize_f64(value)
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.distinct(self.limits.format.unit_is_none)?;
        self.inner.serialize_none()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let levels = self.limits.leaf();
        self.limits.enter(levels)?;
        let value = Value { inner: value, limits: self.limits, is_in_some: true };
        let written = self.inner.serialize_some(&value);
        self.limits.leave(levels);
        written
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.distinct(self.limits.format.unit_is_none)?;
        self.inner.serialize_unit()
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.distinct(self.limits.format.unit_struct_is_none)?;
        self.inner.serialize_unit_struct(name)
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        let levels = self.limits.leaf();
        self.limits.enter(levels)?;
        self.limits.leave(levels);
        self.inner.serialize_unit_variant(name, index, variant)
    }

    /// Not a level of its own; empty if its content is empty.
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let value = Value { inner: value, limits: self.limits, is_in_some: self.is_in_some };
        self.inner.serialize_newtype_struct(name, &value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.limits.enter(1)?;
        let value = self.limits.around(value);
        let written = self.inner.serialize_newtype_variant(name, index, variant, &value);
        self.limits.leave(1);
        written
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.open(1, |inner| inner.serialize_seq(length))
    }

    fn serialize_tuple(self, length: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.open(1, |inner| inner.serialize_tuple(length))
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.open(1, |inner| inner.serialize_tuple_struct(name, length))
    }

    /// Two levels, as in [`serialize_struct_variant`](Serializer::serialize_struct_variant): the
    /// variant and its content.
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.open(2, |inner| inner.serialize_tuple_variant(name, index, variant, length))
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.open(1, |inner| inner.serialize_map(length))
    }

    fn serialize_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        self.open(1, |inner| inner.serialize_struct(name, length))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.open(2, |inner| inner.serialize_struct_variant(name, index, variant, length))
    }
}

impl<C> Container<'_, C> {
    fn close<T>(self, close: impl FnOnce(C) -> T) -> T {
        self.limits.leave(self.levels);
        close(self.inner)
    }
}

impl<C: SerializeSeq> SerializeSeq for Container<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.limits.count();
        self.inner.serialize_element(&self.limits.around(value))
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.close(C::end)
    }
}

impl<C: SerializeMap> SerializeMap for Container<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), C::Error> {
        self.limits.count();
        self.inner.serialize_key(&self.limits.around(key))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.inner.serialize_value(&self.limits.around(value))
    }

    fn serialize_entry<K, T>(&mut self, key: &K, value: &T) -> Result<(), C::Error>
    where
        K: Serialize + ?Sized,
        T: Serialize + ?Sized,
    {
        self.limits.count();
        self.inner.serialize_entry(&self.limits.around(key), &self.limits.around(value))
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.close(C::end)
    }
}

impl<C: SerializeTuple> SerializeTuple for Container<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.inner.serialize_element(&self.limits.around(value))
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.close(C::end)
    }
}

macro_rules! places {
    ($($parts:ident)*) => {$(
        impl<C: $parts> $parts for Container<'_, C> {
            type Ok = C::Ok;
            type Error = C::Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
                self.inner.serialize_field(&self.limits.around(value))
            }

            fn end(self) -> Result<C::Ok, C::Error> {
                self.close(C::end)
            }
        }
    )*};
}

places! { SerializeTupleStruct SerializeTupleVariant }

macro_rules! fields {
    ($($parts:ident)*) => {$(
        impl<C: $parts> $parts for Container<'_, C> {
            type Ok = C::Ok;
            type Error = C::Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), C::Error> {
                self.inner.serialize_field(name, &self.limits.around(value))
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), C::Error> {
                self.limits.skipped()?;
                self.inner.skip_field(name)
            }

            fn end(self) -> Result<C::Ok, C::Error> {
                self.close(C::end)
            }
        }
    )*};
}

fields! { SerializeStruct SerializeStructVariant }
