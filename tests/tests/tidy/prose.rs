//! Takes the paragraphs out of Markdown and comments, without code and output.

use crate::lex::{Kind, pieces};

/// A paragraph, list item, heading or table cell.
#[derive(Debug)]
pub(crate) struct Paragraph {
    /// Line of its first word.
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// Returns the paragraphs of Markdown. `in_code`: the first line is in a code block.
pub(crate) fn paragraphs<'a>(
    lines: impl IntoIterator<Item = (usize, &'a str)>,
    mut in_code: bool,
) -> Vec<Paragraph> {
    let mut found: Vec<Paragraph> = Vec::new();
    let mut ended = true;
    for (line, text) in lines {
        let text = text.trim().trim_start_matches("> ");
        if text.starts_with("```") {
            in_code = !in_code;
            ended = true;
        } else if in_code || text.is_empty() {
            ended = true;
        } else if let Some(row) = text.strip_prefix('|') {
            let cells = row.split('|').map(|cell| cell.trim().to_owned());
            found.extend(cells.map(|text| Paragraph { line, text }));
            ended = true;
        } else if let Some(heading) = text.strip_prefix('#') {
            let text = heading.trim_start_matches('#').trim().to_owned();
            found.push(Paragraph { line, text });
            ended = true;
        } else {
            let item = list_item(text);
            match found.last_mut() {
                Some(last) if !ended && item.is_none() => {
                    last.text.push(' ');
                    last.text.push_str(text);
                }
                _ => found.push(Paragraph { line, text: item.unwrap_or(text).to_owned() }),
            }
            ended = false;
        }
    }
    found
}

fn list_item(text: &str) -> Option<&str> {
    let bullet = ["- ", "* "].into_iter().find_map(|bullet| text.strip_prefix(bullet));
    let number = || text.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(". ");
    bullet.or_else(|| text.starts_with(|c: char| c.is_ascii_digit()).then(number).flatten())
}

/// Returns the paragraphs of the comments in Rust source, doc comments among them.
pub(crate) fn of_rust(source: &str) -> Vec<Paragraph> {
    let lines: Vec<&str> = source.lines().collect();
    let comments = pieces(source).into_iter().filter(|piece| piece.kind == Kind::Comment);
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for comment in comments {
        let markers = ["///", "//!", "//", "/*"];
        let marker = markers.into_iter().find(|m| comment.text.starts_with(m)).unwrap_or_default();
        let is_tail = !lines[comment.line - 1].trim_start().starts_with(marker);
        let line = (comment.line, comment.text[marker.len()..].trim_end_matches("*/"));
        match blocks.last_mut() {
            Some(block) if !is_tail && block.goes_on_with(marker, comment.line) => {
                block.lines.push(line);
            }
            _ => blocks.push(Block { marker, is_tail, lines: vec![line] }),
        }
    }
    // A code block may open in an attribute, because it is code only with some features.
    let opens_code = |line: usize| line > 1 && lines[line - 2].contains("doc = \"```");
    let of_block = |Block { lines, .. }: Block<'_>| {
        let in_code = lines.first().is_some_and(|(line, _)| opens_code(*line));
        paragraphs(lines, in_code)
    };
    blocks.into_iter().flat_map(of_block).collect()
}

/// Comments with the same marker in successive lines, or one that stands behind code.
struct Block<'a> {
    marker: &'a str,
    is_tail: bool,
    lines: Vec<(usize, &'a str)>,
}

impl Block<'_> {
    fn goes_on_with(&self, marker: &str, line: usize) -> bool {
        let is_next = self.lines.last().is_some_and(|(last, _)| last + 1 == line);
        !self.is_tail && self.marker == marker && is_next
    }
}

/// Returns the paragraphs of the comments in a file whose comments begin with `#`.
pub(crate) fn of_hash_comments(source: &str) -> Vec<Paragraph> {
    let lines = source
        .lines()
        .enumerate()
        .map(|(line, text)| (line + 1, text.trim_start().strip_prefix('#').unwrap_or_default()));
    paragraphs(lines.filter(|(_, text)| !text.starts_with('!')), false)
}

/// Returns the sentences of a paragraph.
pub(crate) fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    for (space, _) in text.match_indices(' ') {
        let end = text[..space].trim_end_matches(['*', '_', ')', '"', '`']);
        let begins = |c: char| c.is_uppercase() || ['*', '_', '(', '"', '`', '['].contains(&c);
        if end.ends_with(['.', '!', '?']) && text[space + 1..].starts_with(begins) {
            found.push(&text[start..space]);
            start = space + 1;
        }
    }
    found.push(&text[start..]);
    found
}

#[test]
fn paragraphs_exclude_code_and_split_lists() {
    let text = "# Head\nOne\ntwo.\n- item\n  more\n1. first\n```\nWhat code\n```\n| a | b c |\n";
    let lines = text.lines().enumerate().map(|(line, text)| (line + 1, text));
    let found = paragraphs(lines, false);
    let found: Vec<_> = found.iter().map(|p| (p.line, p.text.as_str())).collect();
    let expected = [
        (1, "Head"),
        (2, "One two."),
        (4, "item more"),
        (6, "first"),
        (10, "a"),
        (10, "b c"),
        (10, ""),
    ];
    assert_eq!(found, expected);
}

#[test]
fn comments_are_split_by_marker() {
    let source = "//! Module.\n\n/// Item\n/// goes on.\n#[cfg_attr(f, doc = \"```\")]\n/// code\n/// ```\n/// After.\n\
                  fn f() {} // tail\n// next\n";
    let found = of_rust(source);
    let found: Vec<_> = found.iter().map(|p| (p.line, p.text.as_str())).collect();
    assert_eq!(
        found,
        [(1, "Module."), (3, "Item goes on."), (8, "After."), (9, "tail"), (10, "next")]
    );
}

#[test]
fn sentences_end_before_capitals() {
    let text = "One, e.g. this. *Two*? (Three.) Four";
    assert_eq!(sentences(text), ["One, e.g. this.", "*Two*?", "(Three.)", "Four"]);
}
