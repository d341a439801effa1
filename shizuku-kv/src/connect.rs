use crate::store::{Connection, KvError};
use std::sync::Arc;
pub const URL_VARIABLE: &str = "SHIZUKU_KV_URL";
pub async fn connect(_url: &str) -> Result<Arc<dyn Connection>, KvError> {
    Err(KvError::InvalidUrl { reason: String::new() })
}
pub async fn connect_from_env() -> Result<Arc<dyn Connection>, KvError> {
    connect("").await
}
