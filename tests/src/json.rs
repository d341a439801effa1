//! Reads the few fields that the harness needs from a server's JSON, so that it needs no parser.

/// Returns the value of the first field of this name: the text of a string, or a number or word as
/// it is written.
pub(crate) fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = json.split_once(&format!("\"{name}\":"))?;
    let after = after.trim_start();
    match after.strip_prefix('"') {
        Some(text) => text.split('"').next(),
        None => after.split([',', '}', ']', '\n']).next().map(str::trim),
    }
}

/// Returns the texts in the first array of strings of this name. Returns none if it is missing or
/// `null`.
pub(crate) fn strings(json: &str, name: &str) -> Vec<String> {
    let items = json
        .split_once(&format!("\"{name}\":"))
        .and_then(|(_, after)| after.trim_start().strip_prefix('['))
        .and_then(|after| after.split(']').next())
        .unwrap_or_default();
    items.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}
