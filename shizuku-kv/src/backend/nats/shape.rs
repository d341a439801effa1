//! Streams that have the name of a bucket and cannot be a store.
//!
//! Opening such a stream would succeed, and the first operation that relies on the setting would
//! fail, or take effect in another way than promised.

use serde_json::Value;

use super::wire::{stream_name, subject_prefix};

/// Returns the setting of a stream that breaks a promise of stores, with the way out, or `None` if
/// all settings fit.
pub(super) fn fault(name: &str, config: &Value) -> Option<String> {
    let stream = stream_name(name);
    let broken = |setting: String| broken(&stream, name, &setting);
    if let Some(reason) = takes_no_writes(name, config) {
        return Some(reason);
    }
    let subject = format!("{}>", subject_prefix(name));
    if let Some(source) = foreign_source(config, &stream, name) {
        return Some(broken(format!(
            "`sources` has stream {source:?} without a subject transform to {subject:?}, so that its messages are not keys \
             of this store; add the transform, or use another name"
        )));
    }
    if present(config, "subject_transform").is_some() {
        return Some(broken(
            "`subject_transform` is set, so that a write is stored under another key; remove it, or use another name"
                .to_owned(),
        ));
    }
    let retention = config.get("retention").and_then(Value::as_str).unwrap_or("limits");
    if retention != "limits" {
        return Some(broken(format!(
            "`retention` is {retention:?}, which removes values that were read; use another name, because it cannot be \
             changed"
        )));
    }
    for (setting, wanted, reason) in FLAGS {
        if config.get(setting).and_then(Value::as_bool).unwrap_or(false) != wanted {
            let way_out = match setting {
                "sealed" | "allow_msg_counter" => {
                    "use another name, because it cannot be changed".to_owned()
                }
                _ => format!("set it to {wanted}, or use another name"),
            };
            return Some(broken(format!(
                "`{setting}` is {}, so that {reason}; {way_out}",
                !wanted
            )));
        }
    }
    None
}

fn broken(stream: &str, name: &str, setting: &str) -> String {
    format!("stream {stream:?} cannot be store {name:?}: {setting}")
}

/// Returns the setting because of which a stream receives no message for a key of the store, with
/// the way out, or `None` if it receives them.
pub(super) fn takes_no_writes(name: &str, config: &Value) -> Option<String> {
    let stream = stream_name(name);
    let broken = |setting: String| broken(&stream, name, &setting);
    if let Some(origin) = present(config, "mirror") {
        let origin = origin.get("name").and_then(Value::as_str).unwrap_or_default();
        let origin = origin.strip_prefix("KV_").unwrap_or(origin);
        return Some(broken(format!(
            "`mirror` is set, so that it takes no writes; open the original, {origin:?}"
        )));
    }
    let subject = format!("{}>", subject_prefix(name));
    let subjects: Vec<_> =
        config.get("subjects").and_then(Value::as_array).into_iter().flatten().collect();
    if !matches!(subjects.as_slice(), [one] if one.as_str() == Some(subject.as_str())) {
        let found: Vec<_> = subjects.iter().filter_map(|subject| subject.as_str()).collect();
        return Some(broken(format!(
            "`subjects` are {found:?}, and a store has exactly {subject:?}; change them, or use another name"
        )));
    }
    None
}

/// Boolean settings, each with the value that a store needs and the consequence of the other value.
const FLAGS: [(&str, bool, &str); 5] = [
    ("sealed", false, "nothing can be written or deleted"),
    ("no_ack", false, "no write is acknowledged"),
    ("discard_new_per_subject", false, "a key that has a value cannot be written again"),
    ("allow_msg_counter", false, "it takes counters only"),
    ("allow_rollup_hdrs", true, "`purge` is rejected"),
];

/// Returns a field of the configuration, if it is set.
fn present<'a>(config: &'a Value, field: &str) -> Option<&'a Value> {
    config.get(field).filter(|value| !value.is_null())
}

/// Returns the first source whose messages enter the stream under subjects outside of the bucket.
fn foreign_source<'a>(config: &'a Value, stream: &str, name: &str) -> Option<&'a str> {
    let sources = config.get("sources").and_then(Value::as_array)?;
    let is_ours = |source: &&Value| {
        let transforms = source.get("subject_transforms").and_then(Value::as_array);
        let leads_here = |transform: &Value| {
            let target = transform.get("dest").and_then(Value::as_str).unwrap_or_default();
            target.starts_with(&subject_prefix(name))
        };
        match transforms {
            Some(transforms) if !transforms.is_empty() => transforms.iter().all(leads_here),
            // A store of the same name, in another domain or account.
            _ => source.get("name").and_then(Value::as_str) == Some(stream),
        }
    };
    let foreign = sources.iter().find(|source| !is_ours(source))?;
    Some(foreign.get("name").and_then(Value::as_str).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bucket() -> Value {
        json!({ "name": "KV_x", "subjects": ["$KV.x.>"], "retention": "limits", "allow_rollup_hdrs": true })
    }

    #[test]
    fn bucket_of_any_client_has_no_fault() {
        assert_eq!(fault("x", &bucket()), None);
        let mut sourced = bucket();
        let transforms = json!([{ "src": "$KV.y.>", "dest": "$KV.x.>" }]);
        sourced["sources"] =
            json!([{ "name": "KV_y", "subject_transforms": transforms }, { "name": "KV_x" }]);
        sourced["max_msgs_per_subject"] = json!(-1);
        sourced["mirror"] = Value::Null;
        assert_eq!(fault("x", &sourced), None);
    }
}
