#[derive(JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
#[kv(key = "config.wrapped", validate = check)]
struct Wrapped<T>(T);
