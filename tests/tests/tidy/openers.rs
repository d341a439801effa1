//! Rule 1 of the style: text starts with a verb or with the thing, not with a relative word.

use crate::lex::{Kind, Piece, pieces};
use crate::names::tests_of;
use crate::prose::{self, Paragraph, sentences};
use crate::ratchet::Finding;
use crate::tree::Source;

const OPENERS: [&str; 9] =
    ["who", "whoever", "what", "whatever", "where", "that", "so much", "of", "in what"];

/// Returns whether a text opens with a forbidden word. Names, which are one word, and questions do
/// not.
fn is_forbidden(text: &str) -> bool {
    let text = text.trim_start_matches(['*', '_', '(', '"', '[', ' ']);
    let first = sentences(text)[0].trim_end_matches(['*', '_', ')', '"']);
    let opens = |opener: &str| {
        let head = text.get(..opener.len()).unwrap_or_default();
        let rest = text.get(opener.len()..).unwrap_or_default();
        head.eq_ignore_ascii_case(opener)
            && !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-')
            && rest.contains(char::is_whitespace)
    };
    OPENERS.iter().any(|opener| opens(opener)) && !first.ends_with('?')
}

/// Returns the openers in a file: of paragraphs in comments, of sentences in Markdown, of errors
/// and messages in Rust, of test names.
pub(crate) fn findings(source: &Source) -> Vec<Finding> {
    let text = source.text.as_str();
    let mut found = Vec::new();
    let mut check = |line, text: &str| {
        if is_forbidden(text) {
            found.push(Finding::new(&source.path, line, text));
        }
    };
    if source.is("md") {
        let lines = text.lines().enumerate().map(|(line, text)| (line + 1, text));
        for Paragraph { line, text } in prose::paragraphs(lines, false) {
            sentences(&text).into_iter().for_each(|sentence| check(line, sentence));
        }
    } else if source.is("rs") {
        prose::of_rust(text).into_iter().for_each(|p| check(p.line, &p.text));
        let is_text = |literal: &Piece<'_>| {
            literal.kind == Kind::Literal && !literal.text.starts_with(['b', 'c'])
        };
        for literal in pieces(text).into_iter().filter(is_text) {
            let message = literal.text.split_once('"').map_or("", |(_, message)| message);
            // Two words may be a part that another text goes around.
            if message.split_whitespace().nth(2).is_some() {
                check(literal.line, message);
            }
        }
        tests_of(text).into_iter().for_each(|(line, name)| check(line, &name.replace('_', " ")));
    } else if source.has_hash_comments() {
        prose::of_hash_comments(text).into_iter().for_each(|p| check(p.line, &p.text));
    }
    found
}

fn lines_of(path: &str, text: &str) -> Vec<usize> {
    let source = Source { path: path.to_owned(), text: text.to_owned() };
    findings(&source).iter().map(|finding| finding.line).collect()
}

#[test]
fn each_opener_is_found() {
    for opener in OPENERS {
        let text = format!("/// {}{} waits.\n", opener[..1].to_uppercase(), &opener[1..]);
        assert_eq!(lines_of("a.rs", &text), [1], "{text}");
    }
}

#[test]
fn opener_is_found_in_every_kind_of_text() {
    let rust = "//! What waits.\n/// Waits.\n///\n/// - **Where** it waits.\nfn f() {} // what waits\n\
                const E: &str = \"what was sent is gone\";\n#[test]\nfn that_is_gone() {}\n";
    assert_eq!(lines_of("a.rs", rust), [1, 4, 5, 6, 8]);
    let markdown = "# Of waiting\n\nIt waits. Whoever waits, waits.\n| a | what waits |\n";
    assert_eq!(lines_of("a.md", markdown), [1, 3, 4]);
    assert_eq!(lines_of("a.toml", "# Where it waits.\n[a]\n"), [1]);
    assert_eq!(lines_of("a", "#!/usr/bin/env bash\n# Where it waits.\n"), [2]);
}

#[test]
fn questions_code_and_single_words_are_no_openers() {
    let rust = "/// `what` waits.\n/// ```\n/// // what waits\n/// ```\nfn f() { g(\"what\", \"of it\") }\n\
                /// Waits. That is why.\nfn what_waits() {}\n";
    assert_eq!(lines_of("a.rs", rust), [] as [usize; 0]);
    assert_eq!(lines_of("a.md", "1. Who waits?\n\nOfficial. | what |\n"), [] as [usize; 0]);
}
