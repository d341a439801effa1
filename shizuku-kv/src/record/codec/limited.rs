//! Limits on written values, so that they can be read back. They are the counterpart of the limits
//! of a format's reader.
//!
//! A serializer accepts more than its deserializer. For example, serde_json writes `null` for a
//! number that is not finite, and for a `Some` of an empty value, which reads as `None`. It writes
//! any depth of nesting, and reads 127 levels. postcard has no names, so a skipped field shifts all
//! later fields. Such a value would be stored and never read, or read as another one. Instead, the
//! write returns an error, at the cost of a few comparisons (ADR 0051).

use std::cell::Cell;
use std::marker::PhantomData;

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// The distinctions that the reader of a format makes, and its limits. They are constants of a
/// type, so that checks that a format does not need are not compiled for it.
pub(super) trait Format {
    /// Maximum number of levels of nesting.
    const LEVELS: usize;
    /// True if a `Some` and a variant without content are levels as well.
    const COUNTS_LEAVES: bool;
    /// Maximum number of elements beyond one for each byte, if the reader counts them.
    const EMPTY_ELEMENTS: Option<usize>;
    /// True if the format has numbers that are not finite.
    const HAS_INFINITY: bool;
    /// True if `()` is written like `None`.
    const UNIT_IS_NONE: bool;
    /// True if a unit struct is written like `None`.
    const UNIT_STRUCT_IS_NONE: bool;
    /// True if fields have names, so that one can be left out.
    const HAS_NAMES: bool;
}

/// The limits for one value, and the counts while it is written.
pub(super) struct Limits<F> {
    format: PhantomData<F>,
    depth: Cell<usize>,
    elements: Cell<usize>,
    rejection: Cell<Option<&'static str>>,
}

impl<F: Format> Limits<F> {
    pub(super) fn new(_: F) -> Self {
        Self {
            format: PhantomData,
            depth: Cell::new(0),
            elements: Cell::new(0),
            rejection: Cell::new(None),
        }
    }

    /// Wraps the value. A serializer receives the result in its place.
    pub(super) fn around<'l, T: ?Sized>(&'l self, value: &'l T) -> Value<'l, F, T> {
        Value { inner: value, limits: self, is_in_some: false }
    }

    /// Returns the exceeded limit, if any. Once the value is written, its length is compared as
    /// well. The error of the serializer cannot carry the limit, because its text could be the
    /// type's own.
    pub(super) fn rejection(&self, written: Option<usize>) -> Option<&'static str> {
        let most =
            F::EMPTY_ELEMENTS.zip(written).map(|(empty, length)| length.saturating_add(empty));
        let has_too_many = most.is_some_and(|most| self.elements.get() > most);
        self.rejection.get().or(has_too_many.then_some("too many elements that take no bytes"))
    }

    fn reject<T, E: Error>(&self, reason: &'static str) -> Result<T, E> {
        self.rejection.set(Some(reason));
        Err(E::custom(reason))
    }

    fn enter<E: Error>(&self, levels: usize) -> Result<(), E> {
        let depth = self.depth.get() + levels;
        if depth > F::LEVELS {
            return self.reject("nested too deeply");
        }
        self.depth.set(depth);
        Ok(())
    }

    fn leave(&self, levels: usize) {
        self.depth.set(self.depth.get().saturating_sub(levels));
    }

    /// Returns the number of levels of a value without content.
    fn leaf(&self) -> usize {
        usize::from(F::COUNTS_LEAVES)
    }

    fn count(&self) {
        if F::EMPTY_ELEMENTS.is_some() {
            self.elements.set(self.elements.get() + 1);
        }
    }

    fn number<E: Error>(&self, is_finite: bool) -> Result<(), E> {
        if is_finite || F::HAS_INFINITY {
            return Ok(());
        }
        self.reject("a number is not finite, for which JSON has no form")
    }

    fn skipped<E: Error>(&self) -> Result<(), E> {
        if F::HAS_NAMES {
            return Ok(());
        }
        self.reject(
            "a field is left out by `skip_serializing_if`, and without names those after it would be read in its place",
        )
    }
}

/// A part of the value, written within limits.
pub(super) struct Value<'l, F, T: ?Sized> {
    inner: &'l T,
    limits: &'l Limits<F>,
    is_in_some: bool,
}

impl<F: Format, T: Serialize + ?Sized> Serialize for Value<'_, F, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { inner, limits, is_in_some } = *self;
        inner.serialize(Limited { inner: serializer, limits, is_in_some })
    }
}

/// A serializer within limits.
struct Limited<'l, F, S> {
    inner: S,
    limits: &'l Limits<F>,
    /// True if the value is the whole content of a `Some`.
    is_in_some: bool,
}

/// A part of a serializer that receives the elements of a container with this many levels.
struct Container<'l, F, C> {
    inner: C,
    limits: &'l Limits<F>,
    levels: usize,
}

impl<'l, F: Format, S: Serializer> Limited<'l, F, S> {
    /// Opens a container.
    fn open<C>(
        self,
        levels: usize,
        open: impl FnOnce(S) -> Result<C, S::Error>,
    ) -> Result<Container<'l, F, C>, S::Error> {
        let limits = self.limits;
        limits.enter(levels)?;
        open(self.inner).map(|inner| Container { inner, limits, levels })
    }

    /// Rejects a value in a `Some` that a reader would take for `None`.
    fn distinct(&self, is_none: bool) -> Result<(), S::Error> {
        if self.is_in_some && is_none {
            return self.limits.reject("a `Some` holds a value that is read as `None`");
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

impl<'l, F: Format, S: Serializer> Serializer for Limited<'l, F, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Container<'l, F, S::SerializeSeq>;
    type SerializeTuple = Container<'l, F, S::SerializeTuple>;
    type SerializeTupleStruct = Container<'l, F, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Container<'l, F, S::SerializeTupleVariant>;
    type SerializeMap = Container<'l, F, S::SerializeMap>;
    type SerializeStruct = Container<'l, F, S::SerializeStruct>;
    type SerializeStructVariant = Container<'l, F, S::SerializeStructVariant>;

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
        self.distinct(F::UNIT_IS_NONE)?;
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
        self.distinct(F::UNIT_IS_NONE)?;
        self.inner.serialize_unit()
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.distinct(F::UNIT_STRUCT_IS_NONE)?;
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

    /// Not a level of its own. It is empty if its content is empty.
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

    /// Counts as two levels, as in
    /// [`serialize_struct_variant`](Serializer::serialize_struct_variant): the variant and its
    /// content.
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

impl<F: Format, C> Container<'_, F, C> {
    fn close<T>(self, close: impl FnOnce(C) -> T) -> T {
        self.limits.leave(self.levels);
        close(self.inner)
    }
}

impl<F: Format, C: SerializeSeq> SerializeSeq for Container<'_, F, C> {
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

impl<F: Format, C: SerializeMap> SerializeMap for Container<'_, F, C> {
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

impl<F: Format, C: SerializeTuple> SerializeTuple for Container<'_, F, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.inner.serialize_element(&self.limits.around(value))
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.close(C::end)
    }
}

macro_rules! positions {
    ($($parts:ident)*) => {$(
        impl<F: Format, C: $parts> $parts for Container<'_, F, C> {
            type Ok = C::Ok;
            type Error = C::Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                value: &T,
            ) -> Result<(), C::Error> {
                self.inner.serialize_field(&self.limits.around(value))
            }

            fn end(self) -> Result<C::Ok, C::Error> {
                self.close(C::end)
            }
        }
    )*};
}

positions! { SerializeTupleStruct SerializeTupleVariant }

macro_rules! fields {
    ($($parts:ident)*) => {$(
        impl<F: Format, C: $parts> $parts for Container<'_, F, C> {
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
