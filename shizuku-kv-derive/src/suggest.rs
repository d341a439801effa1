//! "Did you mean": finds the known name that is nearest to the written one.

/// Names that other libraries use for our options and codecs.
const OTHER_NAMES: [(&[&str], &str); 9] = [
    (&["name", "path", "prefix", "template", "subject", "pattern", "format_key"], "key"),
    (&["store", "table", "collection", "bucket_name", "namespace"], "bucket"),
    (&["check", "rule", "verify", "validate_with"], "validate"),
    (
        &[
            "expiry",
            "expire",
            "expires",
            "expires_in",
            "time_to_live",
            "timeout",
            "age",
            "max_age",
            "lifetime",
        ],
        "ttl",
    ),
    (&["encoding", "format", "serde", "serializer", "content_type"], "codec"),
    (&["key_name", "key_struct"], "key_type"),
    (&["serde_json", "json5"], "json"),
    (&["msgpack", "mpack", "mp", "mpk", "rmp", "rmp_serde"], "messagepack"),
    (&["proto", "prost", "protobufs", "protocol_buffers", "pb"], "protobuf"),
];

/// Returns the nearest of `known`, if it is near enough to be a typing error.
pub(crate) fn did_you_mean<'k>(
    written: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    let limit = (written.chars().count() / 3).clamp(1, 3);
    let known = known.into_iter().collect::<Vec<_>>();
    let written = written.to_lowercase();
    let same = known.iter().find(|known| known.to_lowercase() == written);
    let meant = OTHER_NAMES.iter().find(|(others, _)| others.contains(&written.as_str()));
    let meant = meant.and_then(|(_, meant)| known.iter().find(|known| *known == meant));
    if let Some(meant) = same.or(meant) {
        return Some(meant);
    }
    known
        .into_iter()
        .map(|known| (distance(&written, known), known))
        // Otherwise every name of one letter would be near to a known name of one letter.
        .filter(|(distance, known)| *distance <= limit && *distance < known.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Returns the number of characters to insert, remove, replace or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["key", "crate", "tenant"];
        for (written, meant) in [
            ("kee", Some("key")),
            ("kye", Some("key")),
            ("keys", Some("key")),
            ("craet", Some("crate")),
            ("tennant", Some("tenant")),
            ("KEY", Some("key")),
            ("bucket", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(written, known), meant, "{written}");
        }
        for (written, meant) in
            [("msgpack", "messagepack"), ("MsgPack", "messagepack"), ("prost", "protobuf")]
        {
            assert_eq!(did_you_mean(written, ["json", "messagepack", "protobuf"]), Some(meant));
            assert_eq!(did_you_mean(written, known), None);
        }
    }
}
