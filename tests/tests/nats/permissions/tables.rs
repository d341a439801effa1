//! The tables of `SECURITY.md`.

use super::rights::Rights;

/// A row: the right, and the operations that are denied without it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    is_subscription: bool,
    pub(crate) subject: String,
    pub(crate) needed_by: Vec<String>,
}

/// Returns the rows of the tables in a section.
pub(crate) fn rows(heading: &str) -> Vec<Row> {
    let text = include_str!("../../../../SECURITY.md");
    let (_, section) =
        text.split_once(&format!("### {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n#").next().unwrap();
    let rows: Vec<_> = section.lines().filter_map(row).collect();
    assert!(rows.len() > 5, "{heading}: {rows:?}");
    rows
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<_> = line.split('|').map(str::trim).collect();
    let [_, right, needed_by, _] = cells.as_slice() else { return None };
    let (kind, subject) = right.split_once(" `")?;
    let is_subscription = match kind {
        "subscribe" => true,
        "publish" => false,
        _ => return None,
    };
    Some(Row {
        is_subscription,
        subject: subject.trim_end_matches('`').to_owned(),
        needed_by: needed_by.split(", ").map(str::to_owned).collect(),
    })
}

/// Returns a user with exactly these rights. `adapt` changes the subjects.
pub(crate) fn rights<'a>(
    rows: impl IntoIterator<Item = &'a Row> + Clone,
    adapt: impl Fn(&str) -> String,
) -> Rights {
    let of = |is_subscription| {
        let rows =
            rows.clone().into_iter().filter(move |row| row.is_subscription == is_subscription);
        rows.map(|row| adapt(&row.subject)).collect::<Vec<_>>()
    };
    Rights::publish(of(false)).subscribe(of(true))
}

/// Returns the prefix of inboxes that a table allows.
pub(crate) fn inbox_prefix(rows: &[Row]) -> String {
    let row = rows.iter().find(|row| row.is_subscription).expect("a right to subscribe");
    row.subject.trim_end_matches(".>").to_owned()
}

/// Returns the `authorization` block of the document, with the tests' password in place of its own.
pub(crate) fn block() -> String {
    let text = include_str!("../../../../SECURITY.md");
    let (_, block) =
        text.split_once("```text\nauthorization").expect("a block of the configuration");
    let (block, _) = block.split_once("```").expect("the end of the block");
    format!("authorization{block}")
        .replace("ADMIN_PASSWORD", "hunter2")
        .replace("APP_PASSWORD", "hunter2")
}

/// Returns true if a right covers a subject that an error names, wildcards included.
pub(crate) fn covers(right: &str, named: &str) -> bool {
    let (mut right, mut named) = (right.split('.'), named.split('.'));
    loop {
        match (right.next(), named.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

#[test]
fn rights_cover_subjects() {
    assert!(covers("$KV.x.>", "$KV.x.a.b") && covers("a.*.c", "a.b.c") && covers("a.b", "a.b"));
    assert!(!covers("$KV.x.>", "$KV.x") && !covers("a.*", "a.b.c") && !covers("a.b", "a.c"));
    assert!(covers("a.*.part.>", "a.*.part.>") && !covers("a.*.part.>", "a.*.>"));
}
