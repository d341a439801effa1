crate::kv::__private::if_this_name_is_taken_give_another_with_key_type! {
    #[doc = " The key of a [`Place`]: `{0}.at.{1}.x`."] #[allow(deprecated,
    non_camel_case_types, private_interfaces)] pub (crate) Spot(#[doc =
    " The record's `0`."] pub (crate) u8, #[doc = " The record's `1`."] pub (crate)
    u16,);
}
const _: () = {
    #[allow(unused_imports, clippy::useless_attribute)]
    use crate::kv as __shizuku_kv;
    #[automatically_derived]
    #[allow(dead_code, deprecated)]
    impl Spot {
        /// The template of every key.
        pub(crate) const TEMPLATE: &'static __shizuku_kv::__private::core::primitive::str = "{0}.at.{1}.x";
        /// The literal beginning of every key.
        pub(crate) const PREFIX: &'static __shizuku_kv::__private::core::primitive::str = "";
        /// The scope of all records: for listing and watching them.
        pub(crate) fn scope() -> __shizuku_kv::WatchScope {
            __shizuku_kv::WatchScope::prefix(Self::PREFIX)
        }
        /// The scope of the records with this `0`: for listing and watching them.
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn scope_0(__0: u8) -> __shizuku_kv::WatchScope {
            __shizuku_kv::__private::scope(
                __shizuku_kv::__private::core::format_args!(
                    "{}.at.", __shizuku_kv::__private::print(& __0)
                ),
            )
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::fmt::Debug for Spot {
        fn fmt(
            &self,
            __f: &mut __shizuku_kv::__private::core::fmt::Formatter<'_>,
        ) -> __shizuku_kv::__private::core::fmt::Result {
            __f.debug_tuple("Spot")
                .field(__shizuku_kv::__private::KeyPart::__debug(&self.0))
                .field(__shizuku_kv::__private::KeyPart::__debug(&self.1))
                .finish()
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::clone::Clone for Spot {
        fn clone(&self) -> Self {
            Self {
                0: __shizuku_kv::__private::KeyPart::__clone(&self.0),
                1: __shizuku_kv::__private::KeyPart::__clone(&self.1),
            }
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::cmp::PartialEq for Spot {
        fn eq(&self, __other: &Self) -> __shizuku_kv::__private::core::primitive::bool {
            true && __shizuku_kv::__private::KeyPart::__eq(&self.0, &__other.0)
                && __shizuku_kv::__private::KeyPart::__eq(&self.1, &__other.1)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::cmp::Eq for Spot {}
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::cmp::PartialOrd for Spot {
        fn partial_cmp(
            &self,
            __other: &Self,
        ) -> __shizuku_kv::__private::core::option::Option<
            __shizuku_kv::__private::core::cmp::Ordering,
        > {
            __shizuku_kv::__private::core::option::Option::Some(
                __shizuku_kv::__private::core::cmp::Ord::cmp(self, __other),
            )
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::cmp::Ord for Spot {
        fn cmp(&self, __other: &Self) -> __shizuku_kv::__private::core::cmp::Ordering {
            __shizuku_kv::__private::core::cmp::Ordering::Equal
                .then_with(|| __shizuku_kv::__private::KeyPart::__cmp(
                    &self.0,
                    &__other.0,
                ))
                .then_with(|| __shizuku_kv::__private::KeyPart::__cmp(
                    &self.1,
                    &__other.1,
                ))
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::hash::Hash for Spot {
        fn hash<__H: __shizuku_kv::__private::core::hash::Hasher>(
            &self,
            __state: &mut __H,
        ) {
            __shizuku_kv::__private::KeyPart::__hash(&self.0, __state);
            __shizuku_kv::__private::KeyPart::__hash(&self.1, __state);
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::fmt::Display for Spot {
        fn fmt(
            &self,
            __f: &mut __shizuku_kv::__private::core::fmt::Formatter<'_>,
        ) -> __shizuku_kv::__private::core::fmt::Result {
            __shizuku_kv::__private::core::write!(
                __f, "{}.at.{}.x", __shizuku_kv::__private::print(& self.0),
                __shizuku_kv::__private::print(& self.1)
            )
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::str::FromStr for Spot {
        type Err = __shizuku_kv::ParseKeyError;
        fn from_str(
            __text: &__shizuku_kv::__private::core::primitive::str,
        ) -> __shizuku_kv::__private::core::result::Result<
            Self,
            __shizuku_kv::ParseKeyError,
        > {
            let mut __tokens = __shizuku_kv::__private::KeyTokens::new(
                Self::TEMPLATE,
                __text,
            );
            let __field_0 = __shizuku_kv::__private::KeyTokens::field::<
                u8,
            >(&mut __tokens, "0")?;
            __shizuku_kv::__private::KeyTokens::literal(&mut __tokens, "at")?;
            let __field_1 = __shizuku_kv::__private::KeyTokens::field::<
                u16,
            >(&mut __tokens, "1")?;
            __shizuku_kv::__private::KeyTokens::literal(&mut __tokens, "x")?;
            __shizuku_kv::__private::KeyTokens::finish(
                __tokens,
                Self { 0: __field_0, 1: __field_1 },
            )
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::convert::From<(u8, u16)> for Spot {
        fn from(__fields: (u8, u16)) -> Self {
            Self {
                0: __fields.0,
                1: __fields.1,
            }
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::IntoKey for Spot {
        fn into_key(
            self,
        ) -> __shizuku_kv::__private::core::result::Result<
            __shizuku_kv::Key,
            __shizuku_kv::KvError,
        > {
            __shizuku_kv::__private::into_key(&self)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::IntoKey for &Spot {
        fn into_key(
            self,
        ) -> __shizuku_kv::__private::core::result::Result<
            __shizuku_kv::Key,
            __shizuku_kv::KvError,
        > {
            __shizuku_kv::__private::into_key(&self)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::convert::From<&Spot> for Spot {
        fn from(__key: &Spot) -> Self {
            __shizuku_kv::__private::core::clone::Clone::clone(__key)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::serde::Serialize for Spot {
        fn serialize<__S: __shizuku_kv::__private::serde::Serializer>(
            &self,
            __serializer: __S,
        ) -> __shizuku_kv::__private::core::result::Result<__S::Ok, __S::Error> {
            __shizuku_kv::__private::serde::Serializer::collect_str(__serializer, self)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl<'de> __shizuku_kv::__private::serde::Deserialize<'de> for Spot {
        fn deserialize<__D: __shizuku_kv::__private::serde::Deserializer<'de>>(
            __deserializer: __D,
        ) -> __shizuku_kv::__private::core::result::Result<Self, __D::Error> {
            __shizuku_kv::__private::deserialize_key(__deserializer)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl<T> __shizuku_kv::KeyValue for Place<T>
    where
        T: Clone,
    {
        type Key = Spot;
        type Value = Self;
        fn kv_key(&self) -> Spot {
            Spot {
                0: __shizuku_kv::__private::KeyPart::__clone(&self.0),
                1: __shizuku_kv::__private::KeyPart::__clone(&self.1),
            }
        }
        fn kv_value(&self) -> &Self {
            self
        }
        fn from_kv(_: Spot, __value: Self) -> Self {
            __value
        }
        fn kv_scope() -> __shizuku_kv::__private::core::result::Result<
            __shizuku_kv::WatchScope,
            __shizuku_kv::KvError,
        > {
            __shizuku_kv::__private::core::result::Result::Ok(Spot::scope())
        }
        fn kv_validate(
            &self,
        ) -> __shizuku_kv::__private::core::result::Result<
            (),
            __shizuku_kv::ValidationError,
        > {
            __shizuku_kv::__private::validate::<
                Self,
                _,
            >(self, "Place::check", Place::check)
        }
        fn kv_ttl() -> __shizuku_kv::__private::core::option::Option<
            __shizuku_kv::__private::core::time::Duration,
        > {
            __shizuku_kv::__private::core::option::Option::Some(
                __shizuku_kv::__private::core::time::Duration::new(5400u64, 0u32),
            )
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl<T> __shizuku_kv::ByteSerialize for Place<T>
    where
        T: Clone,
        Self: __shizuku_kv::__private::CanSerialize,
    {
        fn to_bytes(
            &self,
        ) -> __shizuku_kv::__private::core::result::Result<
            __shizuku_kv::__private::Bytes,
            __shizuku_kv::EncodeError,
        > {
            __shizuku_kv::__private::json::to_bytes::<Self>(self)
        }
        fn __read_back(
            __bytes: &__shizuku_kv::__private::Bytes,
        ) -> __shizuku_kv::__private::core::option::Option<
            __shizuku_kv::__private::core::result::Result<
                Self,
                __shizuku_kv::DecodeError,
            >,
        > {
            #[allow(unused_imports)]
            use __shizuku_kv::__private::{Reads as _, ReadsNothing as _};
            (&__shizuku_kv::__private::ReadBack::<Self>::OF).__read(__bytes)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl<T> __shizuku_kv::ByteDeserialize for Place<T>
    where
        T: Clone,
        Self: __shizuku_kv::__private::CanDeserialize,
    {
        fn from_bytes(
            __bytes: &__shizuku_kv::__private::Bytes,
        ) -> __shizuku_kv::__private::core::result::Result<
            Self,
            __shizuku_kv::DecodeError,
        > {
            __shizuku_kv::__private::json::from_bytes::<Self>(__bytes)
        }
    }
    #[automatically_derived]
    #[allow(dead_code, deprecated)]
    impl<T> Place<T>
    where
        T: Clone,
    {
        /// The name of the store that [`open`](Self::open) opens.
        pub(crate) const BUCKET: &'static __shizuku_kv::__private::core::primitive::str = "places";
        /// Opens the store `places`, and creates it where there is none, with times to live for single keys.
        ///
        /// # Errors
        /// Those of the connection's `store_with_config`.
        pub(crate) async fn open(
            connection: &dyn __shizuku_kv::Connection,
        ) -> __shizuku_kv::__private::core::result::Result<
            __shizuku_kv::Store,
            __shizuku_kv::KvError,
        > {
            __shizuku_kv::Connection::store_with_config(
                    connection,
                    Self::BUCKET,
                    __shizuku_kv::StoreConfig::key_ttl(
                        __shizuku_kv::StoreConfig::new(),
                        true,
                    ),
                )
                .await
        }
    }
};
