#[automatically_derived]
#[allow(deprecated)]
impl<T> ::shizuku_kv::ByteSerialize for Wrapped<T>
where
    Self: ::shizuku_kv::__private::CanSerialize,
{
    fn to_bytes(
        &self,
    ) -> ::shizuku_kv::__private::core::result::Result<
        ::shizuku_kv::__private::Bytes,
        ::shizuku_kv::EncodeError,
    > {
        ::shizuku_kv::__private::is_record::<Self>();
        ::shizuku_kv::__private::json::to_bytes::<Self>(self)
    }
    fn __read_back(
        __bytes: &::shizuku_kv::__private::Bytes,
    ) -> ::shizuku_kv::__private::core::option::Option<
        ::shizuku_kv::__private::core::result::Result<Self, ::shizuku_kv::DecodeError>,
    > {
        #[allow(unused_imports)]
        use ::shizuku_kv::__private::{Reads as _, ReadsNothing as _};
        (&::shizuku_kv::__private::ReadBack::<Self>::OF).__read(__bytes)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl<T> ::shizuku_kv::ByteDeserialize for Wrapped<T>
where
    Self: ::shizuku_kv::__private::CanDeserialize,
{
    fn from_bytes(
        __bytes: &::shizuku_kv::__private::Bytes,
    ) -> ::shizuku_kv::__private::core::result::Result<Self, ::shizuku_kv::DecodeError> {
        ::shizuku_kv::__private::is_record::<Self>();
        ::shizuku_kv::__private::json::from_bytes::<Self>(__bytes)
    }
}
#[automatically_derived]
#[allow(deprecated)]
impl<T> ::shizuku_kv::StaticKeyIndexedValue for Wrapped<T> {
    fn key() -> ::shizuku_kv::__private::std::string::String {
        <::shizuku_kv::__private::std::string::String as ::shizuku_kv::__private::core::convert::From<
            &::shizuku_kv::__private::core::primitive::str,
        >>::from("config.wrapped")
    }
    fn validate_value(
        &self,
    ) -> ::shizuku_kv::__private::core::result::Result<(), ::shizuku_kv::BrokenRule> {
        ::shizuku_kv::__private::validate::<Self, _>(self, "check", check)
    }
}
