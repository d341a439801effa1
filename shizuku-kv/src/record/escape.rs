//! Escapes the value of a field into one token of a key.
//!
//! Letters, digits, `_`, `/` and `-` stand for themselves. Any other byte of the UTF-8 text is `=`
//! and two upper-case hexadecimal digits; so are the dot, which would end the token, and `=`
//! itself. The empty text is a lone `=`. In a text that starts with `_kv` the underscore is
//! escaped, because a key must not start so. Every text has one escaped form, and only that form is
//! read back. So two texts never share a key, and one text never has two keys (ADR 0024).

use std::fmt::{self, Display, Write};

use super::key::prints_as;

/// Reserved start that no key may have.
const RESERVED: &[u8] = b"_kv";

/// A text in its escaped form.
#[derive(Debug)]
pub struct Escaped<T>(pub T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Escaper { out: f, state: State::Empty };
        write!(out, "{}", self.0)?;
        out.finish()
    }
}

/// Progress of an escaped text.
enum State {
    /// No byte was written: the text may be empty, or start with anything.
    Empty,
    /// The text consists of this many bytes of [`RESERVED`], which are held back.
    Held(usize),
    /// The text is past its start.
    Started,
}

struct Escaper<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    state: State,
}

impl Escaper<'_, '_> {
    fn byte(&mut self, byte: u8) -> fmt::Result {
        let held = match self.state {
            State::Started => return self.plain(byte),
            State::Empty => 0,
            State::Held(held) => held,
        };
        if RESERVED.get(held) != Some(&byte) {
            self.state = State::Started;
            RESERVED.iter().take(held).try_for_each(|held| self.plain(*held))?;
            return self.plain(byte);
        }
        if held + 1 < RESERVED.len() {
            self.state = State::Held(held + 1);
            return Ok(());
        }
        self.state = State::Started;
        self.out.write_str("=5Fkv")
    }

    fn plain(&mut self, byte: u8) -> fmt::Result {
        if is_plain(byte) {
            self.out.write_char(char::from(byte))
        } else {
            write!(self.out, "={byte:02X}")
        }
    }

    fn finish(mut self) -> fmt::Result {
        match self.state {
            State::Empty => self.out.write_char('='),
            State::Held(held) => RESERVED.iter().take(held).try_for_each(|held| self.plain(*held)),
            State::Started => Ok(()),
        }
    }
}

impl Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().try_for_each(|byte| self.byte(byte))
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'/' | b'-')
}

/// Returns the text that a token stands for. Returns `None` for a token that [`Escaped`] would not
/// write.
pub(super) fn unescape(token: &str) -> Option<String> {
    let mut text = Vec::with_capacity(token.len());
    if token != "=" {
        let mut bytes = token.bytes();
        while let Some(byte) = bytes.next() {
            text.push(if byte == b'=' {
                digit(bytes.next()?)? << 4 | digit(bytes.next()?)?
            } else {
                byte
            });
        }
    }
    let text = String::from_utf8(text).ok()?;
    prints_as(&Escaped(&text), token).then_some(text)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        Escaped(text).to_string()
    }

    #[test]
    fn escaped_forms_match() {
        for (text, token) in [
            ("", "="),
            ("=", "=3D"),
            ("abc-DEF_9/x", "abc-DEF_9/x"),
            ("a.b", "a=2Eb"),
            (">", "=3E"),
            ("*", "=2A"),
            ("é", "=C3=A9"),
            ("_", "_"),
            ("_k", "_k"),
            ("_kv", "=5Fkv"),
            ("_kvs", "=5Fkvs"),
            ("_kx", "_kx"),
            ("__kv", "__kv"),
            ("a_kv", "a_kv"),
            ("_.", "_=2E"),
            ("\u{0}\n", "=00=0A"),
        ] {
            assert_eq!(escaped(text), token);
            assert_eq!(unescape(token).as_deref(), Some(text));
        }
    }

    #[test]
    fn text_written_in_parts_is_the_same() {
        assert_eq!(Escaped(format_args!("{}{}{}", "_", "k", "v.")).to_string(), "=5Fkv=2E");
        assert_eq!(Escaped(format_args!("{}{}", "", "")).to_string(), "=");
    }

    #[test]
    fn forms_that_are_never_written_are_rejected() {
        for token in [
            "", "==", "=4", "=41", "=2e", "=2", "a=", "=FF", "=C3", "_kv", "_kvs", "a.b", "é",
            "=ZZ", "=+5", "=5F",
        ] {
            assert_eq!(unescape(token), None, "{token}");
        }
    }

    /// Tests every text up to a length over the special characters of the escaping, and that no two
    /// share a token.
    #[test]
    fn short_texts_round_trip_and_stay_apart() {
        let alphabet = ['_', 'k', 'v', '=', '.', '2', 'E', 'é', ' '];
        let mut texts = vec![String::new()];
        let mut tokens = std::collections::HashSet::new();
        for _ in 0..=4 {
            let mut longer = Vec::new();
            for text in &texts {
                let token = escaped(text);
                assert_eq!(unescape(&token).as_deref(), Some(text.as_str()));
                assert!(!token.contains('.') && crate::Key::new(&token).is_ok(), "{token}");
                assert!(tokens.insert(token));
                longer.extend(alphabet.iter().map(|character| format!("{text}{character}")));
            }
            texts = longer;
        }
    }

    /// A token that is read back is the one that would be written.
    #[test]
    fn short_tokens_are_canonical_or_rejected() {
        let alphabet = ['_', 'k', 'v', '=', '5', 'F', 'f', '2', 'E', 'a'];
        let mut tokens = vec![String::new()];
        for _ in 0..=4 {
            for token in &tokens {
                if let Some(text) = unescape(token) {
                    assert_eq!(&escaped(&text), token);
                }
            }
            tokens = tokens
                .iter()
                .flat_map(|t| alphabet.iter().map(move |c| format!("{t}{c}")))
                .collect();
        }
    }
}
