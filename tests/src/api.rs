//! JetStream API requests that the client library lacks, and the consumers of a bucket as the
//! server has them.

use async_nats::Client;
use serde_json::{Value, json};

/// Sends a request to JetStream's API. Returns an error with the server's text if it answers with
/// one.
pub(crate) async fn request(
    client: &Client,
    subject: String,
    payload: String,
) -> Result<Value, String> {
    let answer = client
        .request(subject.clone(), payload.into())
        .await
        .map_err(|error| format!("no answer to {subject}: {error}"))?;
    let answer: Value = serde_json::from_slice(&answer.payload)
        .map_err(|error| format!("the answer to {subject} is not JSON: {error}"))?;
    match answer["error"]["description"].as_str() {
        Some(why) => Err(format!("the answer to {subject} is: {why}")),
        None => Ok(answer),
    }
}

/// Returns the names of all consumers of a bucket, or the reason why they are unknown.
pub(crate) async fn consumers(client: &Client, bucket: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    loop {
        let subject = format!("$JS.API.CONSUMER.NAMES.KV_{bucket}");
        let asked = json!({ "offset": names.len() }).to_string();
        let answer = request(client, subject, asked).await?;
        // The server has `null` for an empty page.
        let page = answer["consumers"].as_array().into_iter().flatten();
        let before = names.len();
        names.extend(page.filter_map(Value::as_str).map(str::to_owned));
        let is_whole = answer["total"].as_u64().unwrap_or(0) <= names.len() as u64;
        if names.len() == before || is_whole {
            return Ok(names);
        }
    }
}

/// Deletes a consumer. Succeeds too if no consumer has this name.
pub(crate) async fn delete_consumer(
    client: &Client,
    bucket: &str,
    name: &str,
) -> Result<(), String> {
    let subject = format!("$JS.API.CONSUMER.DELETE.KV_{bucket}.{name}");
    match request(client, subject, String::new()).await {
        Err(why) if why.contains("consumer not found") => Ok(()),
        answer => answer.map(drop),
    }
}
