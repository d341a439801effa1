//! serde's error messages, without quotations of the value.
//!
//! The grammar of serde's messages distinguishes the parts from the *type* from the parts of the
//! value. The type's parts are the found kind, the expectation, and the names of fields and
//! variants that it declares. A message of the type's own code could imitate it, and is not shown
//! ([`Bounds`]). Its expectations can quote as well. So the kept part is also compared with the
//! value, in the same way for every codec (ADR 0018).

use super::bounded::{Bounds, words};

/// Message for errors in which nothing may be quoted.
pub(super) const OPAQUE: &str = "does not fit the type";

/// Returns the part of serde's message that the type wrote, not the value.
fn harmless(message: &str) -> Option<String> {
    if let Some(rest) = message.strip_prefix("invalid type: ") {
        let (kind, expected) = found_and_expected(rest)?;
        return Some(format!("invalid type: {kind}, expected {}", description(expected)?));
    }
    if let Some(rest) = message.strip_prefix("invalid value: ") {
        let (kind, expected) = found_and_expected(rest)?;
        // Existing types put the error of their parser here, which can quote the parsed text.
        return Some(match expected {
            "i8" | "i16" | "i32" | "i64" | "i128" | "isize" | "u8" | "u16" | "u32" | "u64"
            | "u128" | "usize" | "f32" | "f64" | "a character" => {
                format!("invalid value: {kind}, expected {expected}")
            }
            _ => format!("invalid value: {kind}"),
        });
    }
    if let Some(rest) = message.strip_prefix("invalid length ") {
        let (length, expected) = rest.split_once(", expected ")?;
        let length = length.parse::<usize>().ok()?;
        return Some(format!("invalid length {length}, expected {}", description(expected)?));
    }
    for prefix in ["missing field", "duplicate field"] {
        if let Some(name) = message.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(' ')) {
            let name = name.strip_prefix('`')?.strip_suffix('`')?;
            return is_name(name).then(|| format!("{prefix} `{name}`"));
        }
    }
    for what in ["unknown variant", "unknown field"] {
        if let Some(rest) = message.strip_prefix(what) {
            let rest = rest.strip_prefix(" `")?;
            if rest.ends_with("`, there are no variants")
                || rest.ends_with("`, there are no fields")
            {
                return Some(what.to_owned());
            }
            // The found name is before the list and can contain anything. No text follows the list.
            let (_, list) = rest.rsplit_once("`, expected ")?;
            let names = listed(list)?;
            return Some(format!("{what}, expected {names}"));
        }
    }
    None
}

/// Returns the part of a message that may be shown: of one from serde, not of one from the type's
/// own code. `text` is the value as text.
pub(super) fn shown(message: &str, bounds: &Bounds, text: &str) -> Option<String> {
    if bounds.is_custom() {
        return None;
    }
    let kept = harmless(message)?;
    if is_from_type(&kept, bounds, text) {
        return Some(kept);
    }
    // The part before is one of a few constants, or a length.
    let (found, _) = kept.split_once(", expected ")?;
    (!found.starts_with("invalid length ")).then(|| found.to_owned())
}

/// Returns true if no part of a kept message is from the value.
///
/// A word that the type declares is not from the value. Any other word counts as part of the value
/// if it shares four characters with the value, or if a shorter word occurs in it. More than two
/// digits in a row count too, because a number need not occur in the value as text.
fn is_from_type(kept: &str, bounds: &Bounds, text: &str) -> bool {
    let kept = kept.to_lowercase();
    let (mut doubtful, mut numbers) = (Vec::new(), String::new());
    for word in words(kept_from_type(&kept)) {
        let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
        let is_known = is_vocabulary(word) || bounds.is_declared(word);
        // A word separates the digits before it from those after it.
        numbers.push_str(if is_known && !is_number { "x" } else { word });
        if !is_known {
            doubtful.push(word);
        }
    }
    if numbers.split(char::is_alphabetic).any(|run| digits(run).len() > 2) {
        return false;
    }
    let text = text.to_lowercase();
    !doubtful.iter().any(|word| shares(word, &text))
}

fn shares(word: &str, text: &str) -> bool {
    const ENOUGH: usize = 4;
    let starts = word.char_indices().map(|(start, _)| start).collect::<Vec<_>>();
    match starts.len() {
        0..=ENOUGH => text.contains(word),
        _ => {
            let ends = starts.iter().copied().skip(ENOUGH).chain([word.len()]);
            starts.iter().zip(ends).any(|(start, end)| text.contains(&word[*start..end]))
        }
    }
}

/// Returns the found kind, without its literal, and the expectation.
fn found_and_expected(rest: &str) -> Option<(&'static str, &str)> {
    const BARE: [&str; 12] = [
        "null",
        "unit value",
        "byte array",
        "Option value",
        "newtype struct",
        "sequence",
        "map",
        "enum",
        "unit variant",
        "newtype variant",
        "tuple variant",
        "struct variant",
    ];
    let (kind, after) = if let Some(literal) = rest.strip_prefix("string ") {
        ("string", after_quoted(literal)?)
    } else if let Some(literal) = rest.strip_prefix("character `") {
        let mut characters = literal.chars();
        characters.next()?;
        ("character", characters.as_str().strip_prefix('`')?)
    } else if let Some(literal) = rest.strip_prefix("boolean `") {
        ("boolean", literal.strip_prefix("true`").or_else(|| literal.strip_prefix("false`"))?)
    } else if let Some(literal) = rest.strip_prefix("integer `") {
        let after = after_number(literal)?;
        let after = after
            .strip_prefix(" as i128")
            .or_else(|| after.strip_prefix(" as u128"))
            .unwrap_or(after);
        ("integer", after)
    } else if let Some(literal) = rest.strip_prefix("floating point `") {
        ("floating point", after_number(literal)?)
    } else {
        let kind = BARE
            .into_iter()
            .find(|kind| rest.strip_prefix(kind).is_some_and(|after| after.starts_with(',')))?;
        (kind, rest.strip_prefix(kind)?)
    };
    Some((kind, after.strip_prefix(", expected ")?))
}

/// Returns the text after a string in `Debug`'s form, which ends at the first unescaped quote.
fn after_quoted(literal: &str) -> Option<&str> {
    let body = literal.strip_prefix('"')?;
    let mut escaped = false;
    let end = body.find(|character| match character {
        _ if escaped => {
            escaped = false;
            false
        }
        '\\' => {
            escaped = true;
            false
        }
        character => character == '"',
    })?;
    body.get(end + 1..)
}

fn after_number(literal: &str) -> Option<&str> {
    let (number, after) = literal.split_once('`')?;
    (!number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c)))
        .then_some(after)
}

/// Returns a type's expectation if it is a short phrase that quotes nothing.
fn description(expected: &str) -> Option<&str> {
    let is_phrase = !expected.is_empty()
        && expected.len() <= 120
        && expected.chars().all(|c| c.is_alphanumeric() || " _-,.:<>()[]`/#'".contains(c));
    is_phrase.then_some(expected)
}

/// Returns a list of names in serde's form: `` `a` ``, `` `a` or `b` ``, ``one of `a`, `b`, `c` ``.
fn listed(list: &str) -> Option<&str> {
    let (names, separator) = match list.strip_prefix("one of ") {
        Some(names) => (names, ", "),
        None => (list, " or "),
    };
    names
        .split(separator)
        .all(|name| {
            name.strip_prefix('`').and_then(|name| name.strip_suffix('`')).is_some_and(is_name)
        })
        .then_some(list)
}

/// Returns true if a type may declare this name for a field or a variant.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || "_-.$@ /:".contains(c);
    !name.is_empty() && name.len() <= 120 && name.chars().all(allowed)
}

fn digits(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

/// Returns the part of a kept message that is not serde's own wording. A name can be from the value
/// too, because a type can leak a part of it.
fn kept_from_type(kept: &str) -> &str {
    match kept.split_once(", expected ") {
        Some((start, expected)) if !start.starts_with("invalid length ") => expected,
        _ => ["invalid value: ", "invalid length ", "missing field ", "duplicate field "]
            .into_iter()
            .find_map(|prefix| kept.strip_prefix(prefix))
            .unwrap_or(""),
    }
}

/// Returns true for words of the expectations of serde and the standard library, and for small
/// counts.
fn is_vocabulary(word: &str) -> bool {
    const WORDS: [&str; 49] = [
        "a",
        "an",
        "any",
        "array",
        "boolean",
        "byte",
        "bytes",
        "character",
        "element",
        "elements",
        "enum",
        "expected",
        "f32",
        "f64",
        "field",
        "floating",
        "i128",
        "i16",
        "i32",
        "i64",
        "i8",
        "identifier",
        "integer",
        "isize",
        "map",
        "newtype",
        "nonzero",
        "null",
        "of",
        "one",
        "option",
        "or",
        "point",
        "sequence",
        "size",
        "string",
        "struct",
        "tuple",
        "u128",
        "u16",
        "u32",
        "u64",
        "u8",
        "unit",
        "usize",
        "valid",
        "value",
        "variant",
        "with",
    ];
    WORDS.binary_search(&word).is_ok()
        || (word.len() <= 2 && word.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_the_type_is_kept() {
        // The tests of the codecs cover the common forms.
        for (message, kept) in [
            (
                "invalid type: string \"\\\"`\\\\\", expected u16",
                "invalid type: string, expected u16",
            ),
            ("invalid type: character `\"`, expected u16", "invalid type: character, expected u16"),
            (
                "invalid type: integer `-7` as i128, expected a map",
                "invalid type: integer, expected a map",
            ),
            (
                "invalid type: floating point `-7.25e3`, expected a map",
                "invalid type: floating point, expected a map",
            ),
            (
                "invalid type: byte array, expected a map",
                "invalid type: byte array, expected a map",
            ),
            ("invalid value: string \"hunter2\", expected hunter3", "invalid value: string"),
            ("unknown field ``, expected `x`, expected `a`", "unknown field, expected `a`"),
            ("unknown field `hunter2`, there are no fields", "unknown field"),
        ] {
            assert_eq!(harmless(message).as_deref(), Some(kept), "{message}");
        }
    }

    #[test]
    fn message_without_grammar_is_dropped() {
        for message in [
            "",
            "hunter2",
            "missing field hunter2",
            "missing field `hunter2` and more",
            "missing field `\"hunter2\"`",
            "invalid type: hunter2, expected u32",
            "invalid type: string hunter2, expected u32",
            "invalid type: boolean `hunter2`, expected u32",
            "invalid type: integer `hunter2`, expected u32",
            "invalid type: map, expected \"hunter2\"",
            "invalid length hunter2, expected a map",
            "unknown variant `hunter2`",
            "unknown variant `x`, expected hunter2",
        ] {
            assert_eq!(harmless(message), None, "{message}");
        }
        assert_eq!(harmless(&format!("invalid type: map, expected {}", "a".repeat(121))), None);
    }

    #[test]
    fn vocabulary_is_sorted() {
        for word in ["a", "boolean", "floating", "null", "point", "with", "u32", "usize", "12"] {
            assert!(is_vocabulary(word), "{word}");
        }
        assert!(!is_vocabulary("hunter2") && !is_vocabulary("123"));
    }

    #[test]
    fn remaining_words_of_the_type() {
        for (kept, from_type) in [
            ("invalid type: string, expected struct Config", "struct Config"),
            ("invalid value: string", "string"),
            ("invalid length 1, expected a map", "1, expected a map"),
            ("missing field `url`", "`url`"),
            ("duplicate field `url`", "`url`"),
            ("unknown field, expected `a` or `b`", "`a` or `b`"),
            ("unknown field", ""),
        ] {
            assert_eq!(kept_from_type(kept), from_type);
        }
    }
}
