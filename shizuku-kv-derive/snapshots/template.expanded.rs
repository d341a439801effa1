/// The key of a [`User`]: `user.{tenant}.{id}`.
#[allow(deprecated, non_camel_case_types, private_interfaces)]
#[::shizuku_kv::__private::core::prelude::v1::derive(
    ::shizuku_kv::__private::core::fmt::Debug,
    ::shizuku_kv::__private::core::clone::Clone,
    ::shizuku_kv::__private::core::cmp::PartialEq,
    ::shizuku_kv::__private::core::cmp::Eq,
    ::shizuku_kv::__private::core::hash::Hash,
    ::shizuku_kv::__private::core::cmp::PartialOrd,
    ::shizuku_kv::__private::core::cmp::Ord,
)]
pub struct UserKey {
    /// The record's `tenant`.
    pub tenant: String,
    /// The record's `id`.
    pub id: u64,
}
#[automatically_derived]
#[allow(dead_code, deprecated)]
impl UserKey {
    /// What a key is made of.
    pub const TEMPLATE: &'static ::shizuku_kv::__private::core::primitive::str = "user.{tenant}.{id}";
    /// What every key starts with.
    pub const PREFIX: &'static ::shizuku_kv::__private::core::primitive::str = "user.";
    /// The scope of all records: for listing and watching them.
    pub fn scope() -> ::shizuku_kv::WatchScope {
        ::shizuku_kv::WatchScope::prefix(Self::PREFIX)
    }
    /// The scope of the records with this `tenant`: for listing and watching them.
    #[allow(clippy::too_many_arguments)]
    pub fn scope_tenant(
        tenant: impl ::shizuku_kv::__private::core::convert::AsRef<
            ::shizuku_kv::__private::core::primitive::str,
        >,
    ) -> ::shizuku_kv::WatchScope {
        ::shizuku_kv::__private::scope(
            ::shizuku_kv::__private::core::format_args!(
                "user.{}.",
                ::shizuku_kv::__private::Escaped(::shizuku_kv::__private::core::convert::AsRef::
                < ::shizuku_kv::__private::core::primitive::str > ::as_ref(& tenant))
            ),
        )
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl ::shizuku_kv::__private::core::fmt::Display for UserKey {
    fn fmt(
        &self,
        __f: &mut ::shizuku_kv::__private::core::fmt::Formatter<'_>,
    ) -> ::shizuku_kv::__private::core::fmt::Result {
        ::shizuku_kv::__private::core::write!(
            __f, "user.{}.{}", ::shizuku_kv::__private::print(& self.tenant),
            ::shizuku_kv::__private::print(& self.id)
        )
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl ::shizuku_kv::__private::core::str::FromStr for UserKey {
    type Err = ::shizuku_kv::ParseKeyError;
    fn from_str(
        __text: &::shizuku_kv::__private::core::primitive::str,
    ) -> ::shizuku_kv::__private::core::result::Result<
        Self,
        ::shizuku_kv::ParseKeyError,
    > {
        let mut __tokens = ::shizuku_kv::__private::KeyTokens::new(
            Self::TEMPLATE,
            __text,
        );
        ::shizuku_kv::__private::KeyTokens::literal(&mut __tokens, "user")?;
        let __field_0 = ::shizuku_kv::__private::KeyTokens::field::<
            String,
        >(&mut __tokens, "tenant")?;
        let __field_1 = ::shizuku_kv::__private::KeyTokens::field::<
            u64,
        >(&mut __tokens, "id")?;
        ::shizuku_kv::__private::KeyTokens::finish(
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
impl ::shizuku_kv::__private::core::convert::From<(String, u64)> for UserKey {
    fn from(__fields: (String, u64)) -> Self {
        Self {
            tenant: __fields.0,
            id: __fields.1,
        }
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl<
    'text,
> ::shizuku_kv::__private::core::convert::From<
    (&'text ::shizuku_kv::__private::core::primitive::str, u64),
> for UserKey
where
    String: ::shizuku_kv::__private::core::convert::From<
        &'text ::shizuku_kv::__private::core::primitive::str,
    >,
{
    fn from(
        __fields: (&'text ::shizuku_kv::__private::core::primitive::str, u64),
    ) -> Self {
        Self {
            tenant: ::shizuku_kv::__private::core::convert::From::from(__fields.0),
            id: __fields.1,
        }
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl ::shizuku_kv::IntoKey for UserKey {
    fn into_key(
        self,
    ) -> ::shizuku_kv::__private::core::result::Result<
        ::shizuku_kv::Key,
        ::shizuku_kv::KvError,
    > {
        ::shizuku_kv::__private::into_key(&self)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl ::shizuku_kv::IntoKey for &UserKey {
    fn into_key(
        self,
    ) -> ::shizuku_kv::__private::core::result::Result<
        ::shizuku_kv::Key,
        ::shizuku_kv::KvError,
    > {
        ::shizuku_kv::__private::into_key(&self)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl ::shizuku_kv::__private::core::convert::From<&UserKey> for UserKey {
    fn from(__key: &UserKey) -> Self {
        ::shizuku_kv::__private::core::clone::Clone::clone(__key)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl ::shizuku_kv::KeyValue for User {
    type Key = UserKey;
    type Value = Self;
    fn kv_key(&self) -> UserKey {
        UserKey {
            tenant: ::shizuku_kv::__private::core::clone::Clone::clone(&self.tenant),
            id: ::shizuku_kv::__private::core::clone::Clone::clone(&self.id),
        }
    }
    fn kv_value(&self) -> &Self {
        self
    }
    fn from_kv(_: UserKey, __value: Self) -> Self {
        __value
    }
    fn kv_scope() -> ::shizuku_kv::__private::core::result::Result<
        ::shizuku_kv::WatchScope,
        ::shizuku_kv::KvError,
    > {
        ::shizuku_kv::__private::core::result::Result::Ok(UserKey::scope())
    }
}
