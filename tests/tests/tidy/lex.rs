//! Splits Rust source into code, comments and literals, as far as the checks need it.

/// The kind of a [`Piece`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Code,
    Comment,
    /// A string, byte string or character, with its quotes.
    Literal,
}

/// A stretch of source of one kind.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    /// Line of its first character, counted from 1.
    pub(crate) line: usize,
}

/// Returns the pieces of `source` in order; together they are the whole of it.
pub(crate) fn pieces(source: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut code, mut at, mut line) = (0, 0, 1);
    let mut push = |kind, from: usize, to: usize| {
        if from < to {
            let text = &source[from..to];
            pieces.push(Piece { kind, text, line });
            line += text.matches('\n').count();
        }
    };
    let bytes = source.as_bytes();
    while at < bytes.len() {
        let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let found = match bytes[at] {
            b'/' => comment(&source[at..]).map(|length| (Kind::Comment, length)),
            b'"' | b'\'' => literal(&source[at..]).map(|length| (Kind::Literal, length)),
            b'b' | b'c' | b'r' if !in_word => {
                literal(&source[at..]).map(|length| (Kind::Literal, length))
            }
            _ => None,
        };
        match found {
            Some((kind, length)) => {
                push(Kind::Code, code, at);
                push(kind, at, at + length);
                at += length;
                code = at;
            }
            None => at += 1,
        }
    }
    push(Kind::Code, code, at);
    pieces
}

/// Returns `source` with a space for each character of the given kinds; lines stay.
pub(crate) fn without(source: &str, kinds: &[Kind]) -> String {
    let blank = |c| if c == '\n' { c } else { ' ' };
    pieces(source)
        .iter()
        .flat_map(|piece| {
            let blanked = kinds.contains(&piece.kind);
            piece.text.chars().map(move |c| if blanked { blank(c) } else { c })
        })
        .collect()
}

/// Returns the length of the comment that `rest` starts with.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        Some(rest.find('\n').unwrap_or(rest.len()))
    } else {
        rest.starts_with("/*").then(|| block_comment(rest))
    }
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        let next = &rest[at..];
        if next.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if next.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else if let Some(c) = next.chars().next() {
            at += c.len_utf8();
        } else {
            return at;
        }
    }
}

/// Returns the length of the literal that `rest` starts with.
fn literal(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|&prefix| {
        let opening = rest.strip_prefix(prefix).unwrap_or_default();
        let quoted = opening.trim_start_matches('#').starts_with('"');
        quoted && (prefix.ends_with('r') || opening.starts_with('"'))
    });
    if let Some(prefix) = prefix {
        let opening = &rest[prefix.len()..];
        let hashes = opening.len() - opening.trim_start_matches('#').len();
        let body = prefix.len() + hashes + 1;
        let end = if prefix.ends_with('r') {
            rest[body..].find(&format!("\"{}", "#".repeat(hashes))).map(|end| end + 1 + hashes)
        } else {
            unescaped(&rest[body..], '"').map(|end| end + 1)
        };
        return Some(end.map_or(rest.len(), |end| body + end));
    }
    let opening = rest.strip_prefix("b'").or_else(|| rest.strip_prefix('\''))?;
    let body = rest.len() - opening.len();
    let mut chars = opening.chars();
    match (chars.next()?, chars.next()) {
        ('\\', _) => unescaped(opening, '\'').map(|end| body + end + 1),
        (c, Some('\'')) => Some(body + c.len_utf8() + 1),
        // A lifetime.
        _ => None,
    }
}

fn unescaped(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let ends = !escaped && c == quote;
        escaped = !escaped && c == '\\';
        ends.then_some(at)
    })
}

#[test]
fn literals_and_comments_are_told_from_code() {
    let source = "let a = \"x // \\\" y\"; // 'tail\n/* a /* b */ c */ fn f<'a>(c: char) { r#\"\"z\"#; b'\\''; '\"'; }";
    let of = |kind| {
        let kinds = pieces(source).into_iter().filter(move |piece| piece.kind == kind);
        kinds.map(|piece| piece.text).collect::<Vec<_>>()
    };
    assert_eq!(of(Kind::Comment), ["// 'tail", "/* a /* b */ c */"]);
    assert_eq!(of(Kind::Literal), ["\"x // \\\" y\"", "r#\"\"z\"#", "b'\\''", "'\"'"]);
    assert_eq!(of(Kind::Code).concat(), "let a = ; \n fn f<'a>(c: char) { ; ; ; }");
    let blank = without(source, &[Kind::Comment, Kind::Literal]);
    assert_eq!(blank.chars().count(), source.chars().count());
}
