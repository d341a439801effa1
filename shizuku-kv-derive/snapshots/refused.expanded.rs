::core::compile_error! {
    "invalid key: `{tennant}` at byte 5 names no field of `User`; did you mean `{tenant}`?\n    user.{tennant}..{id}\n         ^^^^^^^^^"
}
#[allow(dead_code, missing_docs, non_camel_case_types)]
type UserKey = ::shizuku_kv::__private::Unknown;
#[automatically_derived]
#[allow(deprecated)]
impl ::shizuku_kv::KeyValue for User {
    type Key = ::shizuku_kv::__private::Unknown;
    type Value = ::shizuku_kv::__private::Unknown;
    fn kv_key(&self) -> ::shizuku_kv::__private::Unknown {
        ::shizuku_kv::__private::core::unreachable!()
    }
    fn kv_value(&self) -> &::shizuku_kv::__private::Unknown {
        ::shizuku_kv::__private::core::unreachable!()
    }
    fn from_kv(
        _: ::shizuku_kv::__private::Unknown,
        _: ::shizuku_kv::__private::Unknown,
    ) -> Self {
        ::shizuku_kv::__private::core::unreachable!()
    }
}
#[automatically_derived]
#[allow(dead_code, deprecated, missing_docs)]
impl User {
    const BUCKET: &'static ::shizuku_kv::__private::core::primitive::str = "";
    async fn open(
        _: &dyn ::shizuku_kv::Connection,
    ) -> ::shizuku_kv::__private::core::result::Result<
        ::shizuku_kv::Store,
        ::shizuku_kv::KvError,
    > {
        ::shizuku_kv::__private::core::unreachable!()
    }
}
