//! JetStream API requests that the client library lacks, and the consumers of a bucket as the
//! server has them.

use async_nats::Client;

use crate::json;

/// Sends a request to JetStream's API. Returns an error with the server's text if it answers with
/// one.
pub(crate) async fn request(
    client: &Client,
    subject: String,
    payload: String,
) -> Result<String, String> {
    let answer = client
        .request(subject.clone(), payload.into())
        .await
        .map_err(|error| format!("no answer to {subject}: {error}"))?;
    let answer = String::from_utf8_lossy(&answer.payload).into_owned();
    match json::field(&answer, "description") {
        Some(why) if answer.contains("\"error\":") => {
            Err(format!("the answer to {subject} is: {why}"))
        }
        _ => Ok(answer),
    }
}

/// Returns the names of all consumers of a bucket, or the reason why they are unknown.
pub(crate) async fn consumers(client: &Client, bucket: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    loop {
        let subject = format!("$JS.API.CONSUMER.NAMES.KV_{bucket}");
        let asked = format!("{{\"offset\":{}}}", names.len());
        let answer = request(client, subject, asked).await?;
        let page = json::strings(&answer, "consumers");
        let all_there = page.is_empty();
        names.extend(page);
        let total = json::field(&answer, "total").and_then(|total| total.parse().ok()).unwrap_or(0);
        if all_there || names.len() >= total {
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
