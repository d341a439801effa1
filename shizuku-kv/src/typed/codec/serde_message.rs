//! serde's error messages, without what they quote.
//!
//! The grammar in which serde writes a message tells what comes from the *type* (the kind of what was found, what was
//! expected, the names of fields and variants that the type declares) from what comes from the value. A type's own code
//! can imitate it, so that each codec still has to find out whether something kept is from the value after all.

/// What is said where nothing may be quoted.
pub(super) const OPAQUE: &str = "does not fit the type";

/// The part of serde's message that the type wrote, not the value.
pub(super) fn harmless(message: &str) -> Option<String> {
    if let Some(rest) = message.strip_prefix("invalid type: ") {
        let (kind, expected) = found_and_expected(rest)?;
        return Some(format!("invalid type: {kind}, expected {}", description(expected)?));
    }
    if let Some(rest) = message.strip_prefix("invalid value: ") {
        let (kind, expected) = found_and_expected(rest)?;
        // Types in the wild put the error of their parser here, which can quote what it parsed.
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
            // The name that was found stands before the list and can contain anything; nothing follows the list.
            let (_, list) = rest.rsplit_once("`, expected ")?;
            let names = listed(list)?;
            return Some(format!("{what}, expected {names}"));
        }
    }
    None
}

/// The kind of what was found, without the literal, and what was expected.
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

/// What follows a string in `Debug`'s form, which ends at the first quote that is not escaped.
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

/// What a type says that it expects: a short phrase, not something that quotes.
fn description(expected: &str) -> Option<&str> {
    let is_phrase = !expected.is_empty()
        && expected.len() <= 120
        && expected.chars().all(|c| c.is_alphanumeric() || " _-,.:<>()[]`/#'".contains(c));
    is_phrase.then_some(expected)
}

/// A list of names as serde writes it: `` `a` ``, `` `a` or `b` ``, ``one of `a`, `b`, `c` ``.
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

/// A name that a type may declare for a field or a variant.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || "_-.$@ /:".contains(c);
    !name.is_empty() && name.len() <= 120 && name.chars().all(allowed)
}

pub(super) fn digits(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

/// What of a kept message is not serde's own wording.
pub(super) fn kept_from_type(kept: &str) -> &str {
    match kept.split_once(", expected ") {
        Some((start, expected)) if !start.starts_with("invalid length ") => expected,
        _ => ["invalid value: ", "invalid length ", "missing field ", "duplicate field "]
            .into_iter()
            .find_map(|prefix| kept.strip_prefix(prefix))
            .unwrap_or(""),
    }
}

pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Words with which serde and the standard library say what they expect, and small counts.
pub(super) fn is_vocabulary(word: &str) -> bool {
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
    fn what_the_type_says_is_kept() {
        for (message, kept) in [
            (
                "invalid type: string \"hunter2\", expected u16",
                "invalid type: string, expected u16",
            ),
            (
                "invalid type: string \"\\\"`\\\\\", expected u16",
                "invalid type: string, expected u16",
            ),
            ("invalid type: character `\"`, expected u16", "invalid type: character, expected u16"),
            (
                "invalid type: boolean `true`, expected struct Config",
                "invalid type: boolean, expected struct Config",
            ),
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
            (
                "invalid value: integer `70000`, expected u16",
                "invalid value: integer, expected u16",
            ),
            ("invalid value: string \"hunter2\", expected hunter3", "invalid value: string"),
            (
                "invalid length 1, expected a tuple of size 2",
                "invalid length 1, expected a tuple of size 2",
            ),
            ("missing field `url`", "missing field `url`"),
            ("duplicate field `url`", "duplicate field `url`"),
            (
                "unknown variant `hunter2`, expected `a` or `b`",
                "unknown variant, expected `a` or `b`",
            ),
            ("unknown field ``, expected `x`, expected `a`", "unknown field, expected `a`"),
            (
                "unknown field `hunter2`, expected one of `a`, `b`, `c`",
                "unknown field, expected one of `a`, `b`, `c`",
            ),
            ("unknown field `hunter2`, there are no fields", "unknown field"),
        ] {
            assert_eq!(harmless(message).as_deref(), Some(kept), "{message}");
        }
    }

    #[test]
    fn what_follows_no_grammar_is_dropped() {
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
    fn what_is_left_of_the_type() {
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
