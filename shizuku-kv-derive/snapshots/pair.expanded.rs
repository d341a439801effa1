const _: () = {
    #[allow(unused_imports, clippy::useless_attribute)]
    use ::shizuku_kv as __shizuku_kv;
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::KeyValue for Limit {
        type Key = String;
        type Value = u32;
        fn kv_key(&self) -> String {
            __shizuku_kv::__private::core::clone::Clone::clone(&self.0)
        }
        fn kv_value(&self) -> &u32 {
            &self.1
        }
        fn from_kv(__key: String, __value: u32) -> Self {
            Self { 0: __key, 1: __value }
        }
    }
};
