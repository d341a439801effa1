//! The few fields the harness needs of what a server says in JSON, so that it needs no parser.

/// The value of the first field of this name: the text of a string, or a number or word as it stands.
pub(crate) fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = json.split_once(&format!("\"{name}\":"))?;
    let after = after.trim_start();
    match after.strip_prefix('"') {
        Some(text) => text.split('"').next(),
        None => after.split([',', '}', ']', '\n']).next().map(str::trim),
    }
}

/// The texts in the first array of strings of this name; none where it is missing or `null`.
pub(crate) fn strings(json: &str, name: &str) -> Vec<String> {
    let items = json
        .split_once(&format!("\"{name}\":"))
        .and_then(|(_, after)| after.trim_start().strip_prefix('['))
        .and_then(|after| after.split(']').next())
        .unwrap_or_default();
    items.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}
