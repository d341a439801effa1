//! The backends, one folder each, each behind a feature.

#[cfg(any(feature = "memory", feature = "file"))]
mod embedded;
#[cfg(feature = "file")]
pub(crate) mod file;
#[cfg(feature = "memory")]
pub(crate) mod memory;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(any(feature = "memory", feature = "nats"))]
mod source;

/// Returns the mistake and the way out if a URL has text around it, as from a shell or a file of
/// variables. The reason repeats nothing of the URL.
pub(crate) fn around(url: &str) -> Option<&'static str> {
    let is_quote = |c: char| matches!(c, '"' | '\'' | '`' | '<' | '“' | '‘');
    if url.trim().is_empty() {
        Some("it is empty")
    } else if url.trim() != url {
        Some("white space stands before or after it; remove it")
    } else if url.starts_with(is_quote) {
        Some("it stands in quotes; remove them")
    } else if let Some((name, value)) = url.split_once('=')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ' '))
        && ["memory:", "file:", "nats://", "tls://"].iter().any(|known| {
            value
                .trim_start_matches(is_quote)
                .get(..known.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(known))
        })
    {
        Some("it starts with the name of a variable; remove everything up to the =")
    } else {
        None
    }
}
