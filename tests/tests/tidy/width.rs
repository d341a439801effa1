//! The width of lines: at most 100 columns.

use crate::lex::{Kind, pieces};
use crate::ratchet::Finding;
use crate::tree::Source;

const MAX_WIDTH: usize = 100;

/// Returns the lines that are too wide. Not counted is what cannot be broken: the text of literals,
/// addresses, rows of tables, and in Markdown code blocks, which hold code and output.
pub(crate) fn findings(source: &Source) -> Vec<Finding> {
    let counted = if source.is("rs") {
        rust(&source.text)
    } else if source.is("md") {
        markdown(&source.text)
    } else if source.has_hash_comments() {
        source.text.lines().map(settings).collect()
    } else {
        return Vec::new();
    };
    let wide = counted.iter().zip(source.text.lines()).enumerate();
    let wide = wide.filter(|(_, (counted, _))| without_addresses(counted) > MAX_WIDTH);
    wide.map(|(line, (_, text))| Finding::new(&source.path, line + 1, text.trim())).collect()
}

fn rust(text: &str) -> Vec<String> {
    let mut counted = String::new();
    for piece in pieces(text) {
        match piece.kind {
            Kind::Literal => counted.extend(piece.text.chars().filter(|&c| c == '\n')),
            Kind::Code | Kind::Comment => counted.push_str(piece.text),
        }
    }
    let is_row = |line: &str| ["/// |", "//! |"].iter().any(|row| line.trim().starts_with(row));
    counted.lines().map(|line| if is_row(line) { String::new() } else { line.to_owned() }).collect()
}

fn markdown(text: &str) -> Vec<String> {
    let mut in_code = false;
    let counted = text.lines().map(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        if in_code || is_fence || line.starts_with('|') { String::new() } else { line.to_owned() }
    });
    counted.collect()
}

/// Returns a line of settings or of a shell or Python program, without the text of its literals.
fn settings(line: &str) -> String {
    if line.trim_start().starts_with('#') {
        return line.to_owned();
    }
    let mut quote = None;
    let mut counted = String::new();
    for c in line.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if ['"', '\''].contains(&c) => quote = Some(c),
            None => counted.push(c),
            Some(_) => {}
        }
    }
    counted
}

/// Returns the columns of a line, counting none for addresses.
fn without_addresses(line: &str) -> usize {
    let addresses = line.split_whitespace().filter(|word| word.contains("://"));
    line.chars().count() - addresses.map(|word| word.chars().count()).sum::<usize>()
}

fn lines_of(path: &str, text: &str) -> Vec<usize> {
    let source = Source { path: path.to_owned(), text: text.to_owned() };
    findings(&source).iter().map(|finding| finding.line).collect()
}

#[test]
fn line_above_the_width_is_found() {
    let fits = "é".repeat(100);
    let wide = "x".repeat(101);
    assert_eq!(
        lines_of("a.rs", &format!("{fits}\n{wide}\n//{wide}\n\"{wide}\" {wide}\n")),
        [2, 3, 4]
    );
    assert_eq!(lines_of("a.md", &format!("{fits}\n{wide}\n")), [2]);
    assert_eq!(lines_of("a.toml", &format!("# \"{wide}\"\nx = \"\" {wide}\n")), [1, 2]);
}

#[test]
fn line_that_cannot_be_broken_is_exempt() {
    let wide = "x".repeat(101);
    let rust = format!("f(\"{wide}\");\nf(\"\\\n{wide}\");\n/// https://{wide}\n/// | {wide} |\n");
    assert_eq!(lines_of("a.rs", &rust), [] as [usize; 0]);
    let markdown = format!("| {wide} |\n```\n{wide}\n```\n[a]: https://{wide}\n");
    assert_eq!(lines_of("a.md", &markdown), [] as [usize; 0]);
    assert_eq!(lines_of("a.toml", &format!("x = \"{wide}\"\n")), [] as [usize; 0]);
    assert_eq!(lines_of("a.svg", &wide), [] as [usize; 0]);
}
