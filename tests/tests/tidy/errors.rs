//! Error variants with named fields are `#[non_exhaustive]`, so that more fields can be added
//! (ADR 0065).

use crate::lex::{Kind, without};
use crate::ratchet::Finding;
use crate::tree::Source;

const INDENT: &str = "    ";

/// Returns the variants of the library's public error types that lack the attribute. Relies on the
/// layout of rustfmt.
pub(crate) fn findings(source: &Source) -> Vec<Finding> {
    let is_library = source.is("rs") && source.path.starts_with("shizuku-kv/src/");
    let code = without(if is_library { &source.text } else { "" }, &[Kind::Comment, Kind::Literal]);
    let (mut is_error, mut is_marked) = (false, false);
    let mut found = Vec::new();
    for (line, text) in code.lines().enumerate() {
        if let Some(name) = text.strip_prefix("pub enum ") {
            is_error = name.split(['<', ' ']).next().is_some_and(|name| name.ends_with("Error"));
        }
        if text.starts_with('}') {
            is_error = false;
        }
        let Some(item) = text.strip_prefix(INDENT).filter(|_| is_error) else { continue };
        is_marked |= item.trim_end() == "#[non_exhaustive]";
        if item.starts_with(|c: char| c.is_ascii_uppercase()) {
            if item.contains('{') && !is_marked {
                found.push(Finding::new(&source.path, line + 1, item));
            }
            is_marked = false;
        }
    }
    found
}

#[test]
fn error_variant_that_cannot_grow_is_found() {
    let text = "\
pub enum OneError<E> {
    /// Text.
    #[error(\"{a}\")]
    #[non_exhaustive]
    Grows {
        a: u8,
    },
    Tuple(E),
    #[error(\"{a}\")]
    Fixed {
        a: u8,
    },
    AlsoFixed { a: u8 },
}
pub enum Other {
    Fixed { a: u8 },
}
";
    let in_file = |path: &str| {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        findings(&source).iter().map(|finding| finding.line).collect::<Vec<_>>()
    };
    assert_eq!(in_file("shizuku-kv/src/a.rs"), [10, 13]);
    assert_eq!(in_file("tests/tests/a.rs"), [0; 0]);
}
