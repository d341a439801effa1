#[derive(KeyValue)]
#[kv(
    key = "{0}.at.{1}.x",
    bucket = "places",
    validate = Place::check,
    ttl = "1h30m",
    codec = json,
    key_type = Spot,
    key_serde,
    crate = crate::kv
)]
pub(crate) struct Place<T>(u8, u16, T)
where
    T: Clone;
