/// The key of a [`Place`]: `{0}.at.{1}.x`.
#[allow(deprecated, non_camel_case_types, private_interfaces)]
#[crate::kv::__private::core::prelude::v1::derive(
    crate::kv::__private::core::fmt::Debug,
    crate::kv::__private::core::clone::Clone,
    crate::kv::__private::core::cmp::PartialEq,
    crate::kv::__private::core::cmp::Eq,
    crate::kv::__private::core::hash::Hash,
    crate::kv::__private::core::cmp::PartialOrd,
    crate::kv::__private::core::cmp::Ord,
)]
pub(crate) struct Spot(
    /// The record's `0`.
    pub(crate) u8,
    /// The record's `1`.
    pub(crate) u16,
);
#[automatically_derived]
#[allow(dead_code, deprecated)]
impl Spot {
    /// What a key is made of.
    pub(crate) const TEMPLATE: &'static crate::kv::__private::core::primitive::str = "{0}.at.{1}.x";
    /// What every key starts with.
    pub(crate) const PREFIX: &'static crate::kv::__private::core::primitive::str = "";
    /// The scope of all records: for listing and watching them.
    pub(crate) fn scope() -> crate::kv::WatchScope {
        crate::kv::WatchScope::prefix(Self::PREFIX)
    }
    /// The scope of the records with this `0`: for listing and watching them.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn scope_0(__0: u8) -> crate::kv::WatchScope {
        crate::kv::__private::scope(
            crate::kv::__private::core::format_args!(
                "{}.at.", crate ::kv::__private::print(& __0)
            ),
        )
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl crate::kv::__private::core::fmt::Display for Spot {
    fn fmt(
        &self,
        __f: &mut crate::kv::__private::core::fmt::Formatter<'_>,
    ) -> crate::kv::__private::core::fmt::Result {
        crate::kv::__private::core::write!(
            __f, "{}.at.{}.x", crate ::kv::__private::print(& self.0), crate
            ::kv::__private::print(& self.1)
        )
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl crate::kv::__private::core::str::FromStr for Spot {
    type Err = crate::kv::ParseKeyError;
    fn from_str(
        __text: &crate::kv::__private::core::primitive::str,
    ) -> crate::kv::__private::core::result::Result<Self, crate::kv::ParseKeyError> {
        let mut __tokens = crate::kv::__private::KeyTokens::new(Self::TEMPLATE, __text);
        let __field_0 = crate::kv::__private::KeyTokens::field::<
            u8,
        >(&mut __tokens, "0")?;
        crate::kv::__private::KeyTokens::literal(&mut __tokens, "at")?;
        let __field_1 = crate::kv::__private::KeyTokens::field::<
            u16,
        >(&mut __tokens, "1")?;
        crate::kv::__private::KeyTokens::literal(&mut __tokens, "x")?;
        crate::kv::__private::KeyTokens::finish(
            __tokens,
            Self { 0: __field_0, 1: __field_1 },
        )
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl crate::kv::__private::core::convert::From<(u8, u16)> for Spot {
    fn from(__fields: (u8, u16)) -> Self {
        Self {
            0: __fields.0,
            1: __fields.1,
        }
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl crate::kv::IntoKey for Spot {
    fn into_key(
        self,
    ) -> crate::kv::__private::core::result::Result<crate::kv::Key, crate::kv::KvError> {
        crate::kv::__private::into_key(&self)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl crate::kv::IntoKey for &Spot {
    fn into_key(
        self,
    ) -> crate::kv::__private::core::result::Result<crate::kv::Key, crate::kv::KvError> {
        crate::kv::__private::into_key(&self)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl crate::kv::__private::core::convert::From<&Spot> for Spot {
    fn from(__key: &Spot) -> Self {
        crate::kv::__private::core::clone::Clone::clone(__key)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl crate::kv::__private::serde::Serialize for Spot {
    fn serialize<__S: crate::kv::__private::serde::Serializer>(
        &self,
        __serializer: __S,
    ) -> crate::kv::__private::core::result::Result<__S::Ok, __S::Error> {
        crate::kv::__private::serde::Serializer::collect_str(__serializer, self)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl<'de> crate::kv::__private::serde::Deserialize<'de> for Spot {
    fn deserialize<__D: crate::kv::__private::serde::Deserializer<'de>>(
        __deserializer: __D,
    ) -> crate::kv::__private::core::result::Result<Self, __D::Error> {
        crate::kv::__private::deserialize_key(__deserializer)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl<T> crate::kv::KeyValue for Place<T>
where
    T: Clone,
{
    type Key = Spot;
    type Value = Self;
    fn kv_key(&self) -> Spot {
        Spot {
            0: crate::kv::__private::core::clone::Clone::clone(&self.0),
            1: crate::kv::__private::core::clone::Clone::clone(&self.1),
        }
    }
    fn kv_value(&self) -> &Self {
        self
    }
    fn from_kv(_: Spot, __value: Self) -> Self {
        __value
    }
    fn kv_scope() -> crate::kv::__private::core::result::Result<
        crate::kv::WatchScope,
        crate::kv::KvError,
    > {
        crate::kv::__private::core::result::Result::Ok(Spot::scope())
    }
    fn kv_validate(
        &self,
    ) -> crate::kv::__private::core::result::Result<(), crate::kv::BrokenRule> {
        crate::kv::__private::validate::<Self, _>(self, "Place::check", Place::check)
    }
    fn kv_ttl() -> crate::kv::__private::core::option::Option<
        crate::kv::__private::core::time::Duration,
    > {
        crate::kv::__private::core::option::Option::Some(
            crate::kv::__private::core::time::Duration::new(5400u64, 0u32),
        )
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl<T> crate::kv::ByteSerialize for Place<T>
where
    T: Clone,
    Self: crate::kv::__private::CanSerialize,
{
    fn to_bytes(
        &self,
    ) -> crate::kv::__private::core::result::Result<
        crate::kv::__private::Bytes,
        crate::kv::EncodeError,
    > {
        crate::kv::__private::json::to_bytes::<Self>(self)
    }
    fn __read_back(
        __bytes: &crate::kv::__private::Bytes,
    ) -> crate::kv::__private::core::option::Option<
        crate::kv::__private::core::result::Result<Self, crate::kv::DecodeError>,
    > {
        #[allow(unused_imports)]
        use crate::kv::__private::{Reads as _, ReadsNothing as _};
        (&crate::kv::__private::ReadBack::<Self>::OF).__read(__bytes)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl<T> crate::kv::ByteDeserialize for Place<T>
where
    T: Clone,
    Self: crate::kv::__private::CanDeserialize,
{
    fn from_bytes(
        __bytes: &crate::kv::__private::Bytes,
    ) -> crate::kv::__private::core::result::Result<Self, crate::kv::DecodeError> {
        crate::kv::__private::json::from_bytes::<Self>(__bytes)
    }
}
#[automatically_derived]
#[allow(dead_code, deprecated)]
impl<T> Place<T>
where
    T: Clone,
{
    /// The name of the store that [`open`](Self::open) opens.
    pub(crate) const BUCKET: &'static crate::kv::__private::core::primitive::str = "places";
    /// Opens the store `places`, and creates it where there is none, with times to live for single keys.
    ///
    /// # Errors
    /// Those of the connection's `store_with_config`.
    pub(crate) async fn open(
        connection: &dyn crate::kv::Connection,
    ) -> crate::kv::__private::core::result::Result<
        crate::kv::Store,
        crate::kv::KvError,
    > {
        crate::kv::Connection::store_with_config(
                connection,
                Self::BUCKET,
                crate::kv::StoreConfig::key_ttl(crate::kv::StoreConfig::new(), true),
            )
            .await
    }
}
