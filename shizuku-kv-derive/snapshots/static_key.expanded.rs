const _: () = {
    #[allow(unused_imports, clippy::useless_attribute)]
    use ::shizuku_kv as __shizuku_kv;
    #[automatically_derived]
    #[allow(deprecated)]
    impl<T> __shizuku_kv::ByteSerialize for Wrapped<T>
    where
        Self: __shizuku_kv::__private::CanSerialize,
    {
        fn to_bytes(
            &self,
        ) -> __shizuku_kv::__private::core::result::Result<
            __shizuku_kv::__private::Bytes,
            __shizuku_kv::EncodeError,
        > {
            __shizuku_kv::__private::is_record::<Self>();
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
};
const _: () = {
    #[allow(unused_imports, clippy::useless_attribute)]
    use ::shizuku_kv as __shizuku_kv;
    #[automatically_derived]
    #[allow(deprecated)]
    impl<T> __shizuku_kv::ByteDeserialize for Wrapped<T>
    where
        Self: __shizuku_kv::__private::CanDeserialize,
    {
        fn from_bytes(
            __bytes: &__shizuku_kv::__private::Bytes,
        ) -> __shizuku_kv::__private::core::result::Result<
            Self,
            __shizuku_kv::DecodeError,
        > {
            __shizuku_kv::__private::is_record::<Self>();
            __shizuku_kv::__private::json::from_bytes::<Self>(__bytes)
        }
    }
};
const _: () = {
    #[allow(unused_imports, clippy::useless_attribute)]
    use ::shizuku_kv as __shizuku_kv;
    #[automatically_derived]
    #[allow(deprecated)]
    impl<T> __shizuku_kv::StaticKeyIndexedValue for Wrapped<T> {
        fn key() -> __shizuku_kv::__private::std::string::String {
            <__shizuku_kv::__private::std::string::String as __shizuku_kv::__private::core::convert::From<
                &__shizuku_kv::__private::core::primitive::str,
            >>::from("config.wrapped")
        }
        fn validate_value(
            &self,
        ) -> __shizuku_kv::__private::core::result::Result<
            (),
            __shizuku_kv::ValidationError,
        > {
            __shizuku_kv::__private::validate::<Self, _>(self, "check", check)
        }
    }
};
