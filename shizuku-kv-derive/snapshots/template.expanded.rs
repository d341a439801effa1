::shizuku_kv::__private::if_this_name_is_taken_give_another_with_key_type! {
    #[doc = " The key of a [`User`]: `user.{tenant}.{id}`."] #[allow(deprecated,
    non_camel_case_types, private_interfaces)] pub UserKey { #[doc =
    " The record's `tenant`."] pub tenant : String, #[doc = " The record's `id`."] pub id
    : u64, }
}
const _: () = {
    #[allow(unused_imports, clippy::useless_attribute)]
    use ::shizuku_kv as __shizuku_kv;
    #[automatically_derived]
    #[allow(dead_code, deprecated)]
    impl UserKey {
        /// The template of every key.
        pub const TEMPLATE: &'static __shizuku_kv::__private::core::primitive::str = "user.{tenant}.{id}";
        /// The literal beginning of every key.
        pub const PREFIX: &'static __shizuku_kv::__private::core::primitive::str = "user.";
        /// The scope of all records: for listing and watching them.
        pub fn scope() -> __shizuku_kv::WatchScope {
            __shizuku_kv::WatchScope::prefix(Self::PREFIX)
        }
        /// The scope of the records with this `tenant`: for listing and watching them.
        #[allow(clippy::too_many_arguments)]
        pub fn scope_tenant(
            tenant: impl __shizuku_kv::__private::core::convert::AsRef<
                __shizuku_kv::__private::core::primitive::str,
            >,
        ) -> __shizuku_kv::WatchScope {
            __shizuku_kv::__private::scope(
                __shizuku_kv::__private::core::format_args!(
                    "user.{}.",
                    __shizuku_kv::__private::Escaped(__shizuku_kv::__private::core::convert::AsRef::
                    < __shizuku_kv::__private::core::primitive::str > ::as_ref(& tenant))
                ),
            )
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::fmt::Debug for UserKey {
        fn fmt(
            &self,
            __f: &mut __shizuku_kv::__private::core::fmt::Formatter<'_>,
        ) -> __shizuku_kv::__private::core::fmt::Result {
            __f.debug_struct("UserKey")
                .field("tenant", __shizuku_kv::__private::KeyPart::__debug(&self.tenant))
                .field("id", __shizuku_kv::__private::KeyPart::__debug(&self.id))
                .finish()
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::clone::Clone for UserKey {
        fn clone(&self) -> Self {
            Self {
                tenant: __shizuku_kv::__private::KeyPart::__clone(&self.tenant),
                id: __shizuku_kv::__private::KeyPart::__clone(&self.id),
            }
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::cmp::PartialEq for UserKey {
        fn eq(&self, __other: &Self) -> __shizuku_kv::__private::core::primitive::bool {
            true && __shizuku_kv::__private::KeyPart::__eq(&self.tenant, &__other.tenant)
                && __shizuku_kv::__private::KeyPart::__eq(&self.id, &__other.id)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::cmp::Eq for UserKey {}
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::cmp::PartialOrd for UserKey {
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
    impl __shizuku_kv::__private::core::cmp::Ord for UserKey {
        fn cmp(&self, __other: &Self) -> __shizuku_kv::__private::core::cmp::Ordering {
            __shizuku_kv::__private::core::cmp::Ordering::Equal
                .then_with(|| __shizuku_kv::__private::KeyPart::__cmp(
                    &self.tenant,
                    &__other.tenant,
                ))
                .then_with(|| __shizuku_kv::__private::KeyPart::__cmp(
                    &self.id,
                    &__other.id,
                ))
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::hash::Hash for UserKey {
        fn hash<__H: __shizuku_kv::__private::core::hash::Hasher>(
            &self,
            __state: &mut __H,
        ) {
            __shizuku_kv::__private::KeyPart::__hash(&self.tenant, __state);
            __shizuku_kv::__private::KeyPart::__hash(&self.id, __state);
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::fmt::Display for UserKey {
        fn fmt(
            &self,
            __f: &mut __shizuku_kv::__private::core::fmt::Formatter<'_>,
        ) -> __shizuku_kv::__private::core::fmt::Result {
            __shizuku_kv::__private::core::write!(
                __f, "user.{}.{}", __shizuku_kv::__private::print(& self.tenant),
                __shizuku_kv::__private::print(& self.id)
            )
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::core::str::FromStr for UserKey {
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
            __shizuku_kv::__private::KeyTokens::literal(&mut __tokens, "user")?;
            let __field_0 = __shizuku_kv::__private::KeyTokens::field::<
                String,
            >(&mut __tokens, "tenant")?;
            let __field_1 = __shizuku_kv::__private::KeyTokens::field::<
                u64,
            >(&mut __tokens, "id")?;
            __shizuku_kv::__private::KeyTokens::finish(
                __tokens,
                Self {
                    tenant: __field_0,
                    id: __field_1,
                },
            )
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::__private::IntoField<String, UserKey, 0usize> for String {
        fn __into_field(self) -> String {
            self
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl<
        __Text0: __shizuku_kv::__private::IntoField<String, UserKey, 0usize>,
    > __shizuku_kv::__private::core::convert::From<(__Text0, u64)> for UserKey {
        fn from(__fields: (__Text0, u64)) -> Self {
            Self {
                tenant: __shizuku_kv::__private::IntoField::__into_field(__fields.0),
                id: __fields.1,
            }
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::IntoKey for UserKey {
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
    impl __shizuku_kv::IntoKey for &UserKey {
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
    impl __shizuku_kv::__private::core::convert::From<&UserKey> for UserKey {
        fn from(__key: &UserKey) -> Self {
            __shizuku_kv::__private::core::clone::Clone::clone(__key)
        }
    }
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::KeyValue for User {
        type Key = UserKey;
        type Value = Self;
        fn kv_key(&self) -> UserKey {
            UserKey {
                tenant: __shizuku_kv::__private::KeyPart::__clone(&self.tenant),
                id: __shizuku_kv::__private::KeyPart::__clone(&self.id),
            }
        }
        fn kv_value(&self) -> &Self {
            self
        }
        fn from_kv(_: UserKey, __value: Self) -> Self {
            __value
        }
        fn kv_scope() -> __shizuku_kv::__private::core::result::Result<
            __shizuku_kv::WatchScope,
            __shizuku_kv::KvError,
        > {
            __shizuku_kv::__private::core::result::Result::Ok(UserKey::scope())
        }
    }
};
