//! The creation of a consumer, in the form that the user has a right to.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::api::ApiError;
use super::super::delete_on_drop::DeleteOnDrop;
use super::super::denials::Form;
use super::super::link::Link;
use super::super::liveness::Liveness;
use super::super::stream_info::Cluster;
use super::super::wire::parse_time;
use super::queue::Queue;
use super::{HEARTBEAT, OrderedConsumer, PULL, PULL_BYTES, SHORT_HEARTBEAT, Spec, Start, nanos};
use crate::store::{Deadline, KvError, KvResult, SuspendAwareInstant};

impl OrderedConsumer {
    /// Creates the consumer `name`. The creation is idempotent for the same specification. After a
    /// lost answer it can therefore be repeated, and leaves one consumer at most.
    ///
    /// A cluster may place the consumer on a server that has just crashed and never answers, even
    /// to repeated requests. So after a quarter of the deadline, and one heartbeat at most, another
    /// consumer is created. The first one is deleted. A cluster may also be slow, and then another
    /// creation would only add to its work. So the first one has at least twice the time of the
    /// last creations.
    pub(in super::super) async fn create(
        link: Arc<Link>,
        operation: &'static str,
        spec: &Spec,
        name: String,
        deadline: Deadline,
    ) -> KvResult<Result<Self, ApiError>> {
        let mut others = 0_u32;
        loop {
            let name = if others == 0 { name.clone() } else { format!("{name}-{others}") };
            let usual = (deadline.limit() / 4).min(HEARTBEAT);
            let share = deadline.at_most(link.pace().patience(usual));
            match Self::create_one(Arc::clone(&link), operation, spec, name, share).await {
                Err(KvError::Timeout { .. }) if !deadline.remaining().is_zero() => others += 1,
                created => return created,
            }
        }
    }

    async fn create_one(
        link: Arc<Link>,
        operation: &'static str,
        spec: &Spec,
        name: String,
        deadline: Deadline,
    ) -> KvResult<Result<Self, ApiError>> {
        let mut config = json!({
            "name": name,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "mem_storage": true,
            "num_replicas": 1,
            "inactive_threshold": nanos(spec.inactive),
            "headers_only": spec.headers_only,
        });
        match spec.filters.as_slice() {
            [] => {}
            [one] => config["filter_subject"] = json!(one),
            many => config["filter_subjects"] = json!(many),
        }
        match spec.start {
            Start::LastPerSubject => config["deliver_policy"] = json!("last_per_subject"),
            Start::Last => config["deliver_policy"] = json!("last"),
            Start::Sequence(sequence) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(sequence.max(1));
            }
        }
        let mark = link.up(operation, deadline).await?;
        let inbox = link.client().new_inbox();
        let deliveries = format!("{inbox}.*");
        let messages = link.subscribe(operation, deliveries.clone()).await?;
        let request = json!({ "stream_name": spec.stream, "config": config });
        let pull_subject = link.space().api(&format!("CONSUMER.MSG.NEXT.{}.{name}", spec.stream));
        let mut consumer = Self {
            liveness: Liveness::new(
                Arc::clone(&link),
                mark,
                [pull_subject.clone(), deliveries.clone()],
            ),
            pull_subject,
            link: Arc::clone(&link),
            delete_on_drop: DeleteOnDrop::new(&link, &spec.stream, &name),
            inbox,
            queue: Queue::new(messages),
            pulls: 0,
            outstanding: 0,
            batch: PULL,
            bytes: PULL_BYTES.max(link.max_payload() + 64 * 1024),
            mark,
            expires: None,
            asked: (SuspendAwareInstant::now(), Duration::ZERO),
            // The consumer begins at its creation, which is later.
            served: SuspendAwareInstant::now(),
            unasked: Duration::ZERO,
            fresh: true,
            last_sequence: 0,
            heartbeat: SHORT_HEARTBEAT,
            has_list: spec.start == Start::LastPerSubject,
            pending_at_start: 0,
            server: None,
            created: SystemTime::UNIX_EPOCH,
        };
        // From here on the consumer may exist. If this future is dropped, `delete_on_drop` deletes
        // the consumer.
        let sent = Instant::now();
        let created = request_creation(&link, operation, spec, &name, &request, deadline).await;
        match &created {
            Ok(Ok(_)) => link.pace().answered(sent.elapsed()),
            Err(KvError::Timeout { .. }) => link.pace().abandoned(sent.elapsed()),
            _ => {}
        }
        let created = match created? {
            Ok(created) => created,
            Err(rejected) => return Ok(Err(rejected)),
        };
        consumer.pending_at_start = created.num_pending;
        consumer.created = parse_time(&created.created);
        consumer.delete_on_drop.exists = true;
        consumer.server = created.cluster.and_then(|cluster| cluster.leader);
        // A denial of the subscription arrives before the answer.
        if let Some(denial) = link.denied(mark, &[&deliveries]) {
            return Err(denial.error(operation));
        }
        link.ensure_subscribed(operation, mark)?;
        Ok(Ok(consumer))
    }
}

/// The server's description of a new consumer.
#[derive(Deserialize)]
struct Created {
    num_pending: u64,
    #[serde(default)]
    created: String,
    #[serde(default)]
    cluster: Option<Cluster>,
}

/// Requests a consumer, in the form that the user has a right to.
///
/// The server compares a filter with the user's rights only if the subject contains the filter. A
/// user may instead have the right to any consumer of the bucket, and not to the longer subject. So
/// a denied form is replaced by the other one, even if the other one was denied before. A reload of
/// the server's configuration changes rights on an open connection.
async fn request_creation(
    link: &Link,
    operation: &'static str,
    spec: &Spec,
    name: &str,
    request: &Value,
    deadline: Deadline,
) -> KvResult<Result<Created, ApiError>> {
    let plain = format!("CONSUMER.CREATE.{}.{name}", spec.stream);
    let patience = link.pace().patience(Duration::ZERO);
    let [filter] = spec.filters.as_slice() else {
        return link.api_patiently(operation, &plain, request, deadline, patience).await;
    };
    let with_filter = format!("{plain}.{filter}");
    let is_closed = link.is_denied(Form::FilterInSubject, &spec.stream);
    let (usual, other) = if is_closed { (&plain, &with_filter) } else { (&with_filter, &plain) };
    let denied = match link.api_patiently(operation, usual, request, deadline, patience).await {
        Err(denied @ KvError::Unauthorized { .. }) => denied,
        created => return created,
    };
    match link.api_patiently(operation, other, request, deadline, patience).await {
        // The longer subject is the smaller right.
        Err(also @ KvError::Unauthorized { .. }) => Err(if is_closed { also } else { denied }),
        created => {
            match created {
                Err(_) => {}
                Ok(_) if is_closed => link.allow(Form::FilterInSubject, &spec.stream),
                Ok(_) => link.deny(Form::FilterInSubject, &spec.stream),
            }
            created
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports by panicking")]
mod tests {
    use std::collections::HashSet;
    use std::sync::mpsc;

    use super::super::super::scripted;
    use super::*;

    /// Returns the subjects that a client has sent for one creation with a deadline of 400 ms, of a
    /// server that answers nothing meanwhile.
    async fn sent_to_a_slow_server(last: Duration) -> Vec<String> {
        let (sent, requests) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let link = scripted::link(move |subject| {
            let _ = sent.send(subject.to_owned());
            let _ = released.recv();
            r#"{"success":true}"#.to_owned()
        })
        .await;
        link.pace().abandoned(last);
        let spec = Spec {
            stream: "KV_s".to_owned(),
            filters: Vec::new(),
            start: Start::LastPerSubject,
            headers_only: false,
            inactive: Duration::from_secs(60),
        };
        let deadline = Deadline::after(Duration::from_millis(400));
        let name = "c".to_owned();
        let created =
            OrderedConsumer::create(Arc::clone(&link), "watch", &spec, name, deadline).await;
        assert!(matches!(created, Err(KvError::Timeout { .. })), "{created:?}");
        drop(release);
        // Everything that the creation has sent precedes this request.
        let deadline = Deadline::after(Deadline::DEFAULT);
        link.request("watch", "end", "".into(), deadline).answer().await.unwrap();
        requests.try_iter().filter(|subject| subject.contains("CONSUMER.CREATE")).collect()
    }

    /// The creation would be repeated, and other consumers created, although the server is slow.
    #[tokio::test]
    async fn creation_on_a_slow_server_is_sent_once() {
        let sent = sent_to_a_slow_server(Duration::from_secs(10)).await;
        assert_eq!(sent.len(), 1, "{sent:?}");
    }

    /// A cluster may have placed the consumer on a server that has just crashed.
    #[tokio::test]
    async fn creation_without_an_answer_uses_another_name() {
        let sent = sent_to_a_slow_server(Duration::ZERO).await;
        let names: HashSet<_> = sent.iter().collect();
        assert!(names.len() > 1, "{sent:?}");
    }
}
