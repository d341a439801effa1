::core::compile_error! {
    "invalid key: `{tennant}` at byte 5 names no field of `User`; did you mean `{tenant}`?\n    user.{tennant}..{id}\n         ^^^^^^^^^"
}
#[allow(dead_code, missing_docs, non_camel_case_types)]
type UserKey = ::shizuku_kv::__private::Unknown;
const _: () = {
    #[allow(unused_imports, clippy::useless_attribute)]
    use ::shizuku_kv as __shizuku_kv;
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::KeyValue for User {
        type Key = __shizuku_kv::__private::Unknown;
        type Value = __shizuku_kv::__private::Unknown;
        fn kv_key(&self) -> __shizuku_kv::__private::Unknown {
            __shizuku_kv::__private::core::unreachable!()
        }
        fn kv_value(&self) -> &__shizuku_kv::__private::Unknown {
            __shizuku_kv::__private::core::unreachable!()
        }
        fn from_kv(
            _: __shizuku_kv::__private::Unknown,
            _: __shizuku_kv::__private::Unknown,
        ) -> Self {
            __shizuku_kv::__private::core::unreachable!()
        }
    }
    #[automatically_derived]
    #[allow(dead_code, deprecated, missing_docs)]
    impl User {
        const BUCKET: &'static __shizuku_kv::__private::core::primitive::str = "";
        async fn open(
            _: &dyn __shizuku_kv::Connection,
        ) -> __shizuku_kv::__private::core::result::Result<
            __shizuku_kv::Store,
            __shizuku_kv::KvError,
        > {
            __shizuku_kv::__private::core::unreachable!()
        }
    }
};
