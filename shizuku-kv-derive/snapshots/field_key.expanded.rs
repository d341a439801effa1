const _: () = {
    #[allow(unused_imports, clippy::useless_attribute)]
    use ::shizuku_kv as __shizuku_kv;
    #[automatically_derived]
    #[allow(deprecated)]
    impl __shizuku_kv::KeyValue for Job {
        type Key = String;
        type Value = Self;
        fn kv_key(&self) -> String {
            __shizuku_kv::__private::core::clone::Clone::clone(&self.id)
        }
        fn kv_value(&self) -> &Self {
            self
        }
        fn from_kv(_: String, __value: Self) -> Self {
            __value
        }
    }
};
