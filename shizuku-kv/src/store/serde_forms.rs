//! Serde forms of keys, versions and cursors.
//!
//! A key is serialized as its text. A version and a cursor are serialized as their bytes, in
//! hexadecimal if the format is human-readable. Deserializing validates like the constructors.

use std::fmt::{self, Write};
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Key, KvError, VersionToken, WatchCursor};

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Key, E> {
                Key::new(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// A type with a byte form that it validates.
trait Token: Sized {
    const NAME: &str;

    fn read(bytes: &[u8]) -> Result<Self, KvError>;
}

impl Token for VersionToken {
    const NAME: &str = "a version token";

    fn read(bytes: &[u8]) -> Result<Self, KvError> {
        Self::from_bytes(bytes)
    }
}

impl Token for WatchCursor {
    const NAME: &str = "a watch cursor";

    fn read(bytes: &[u8]) -> Result<Self, KvError> {
        Self::from_bytes(bytes)
    }
}

impl Serialize for VersionToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write(&self.to_bytes(), serializer)
    }
}

impl<'de> Deserialize<'de> for VersionToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

impl Serialize for WatchCursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write(&self.to_bytes(), serializer)
    }
}

impl<'de> Deserialize<'de> for WatchCursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

fn write<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    if !serializer.is_human_readable() {
        return serializer.serialize_bytes(bytes);
    }
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    serializer.serialize_str(&text)
}

fn read<'de, T: Token, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Bytes<T>(PhantomData<T>);

    impl<'de, T: Token> Visitor<'de> for Bytes<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::NAME)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            let digits = text.as_bytes().chunks(2).map(|pair| {
                let pair = str::from_utf8(pair)
                    .ok()
                    .filter(|pair| pair.len() == 2 && !pair.starts_with('+'))?;
                u8::from_str_radix(pair, 16).ok()
            });
            match digits.collect::<Option<Vec<_>>>() {
                Some(bytes) => self.visit_bytes(&bytes),
                None => Err(E::custom(format_args!("{} has to be hexadecimal", T::NAME))),
            }
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<T, E> {
            T::read(bytes).map_err(E::custom)
        }

        // Some formats have no byte strings, and contain sequences of numbers instead.
        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<T, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = elements.next_element()? {
                if bytes.len() == WatchCursor::LEN {
                    return Err(A::Error::custom(format_args!("too long for {}", T::NAME)));
                }
                bytes.push(byte);
            }
            self.visit_bytes(&bytes)
        }
    }

    if deserializer.is_human_readable() {
        deserializer.deserialize_str(Bytes(PhantomData))
    } else {
        deserializer.deserialize_bytes(Bytes(PhantomData))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports by panicking")]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn keys_versions_and_cursors_round_trip() {
        let cursor = WatchCursor::new([7; 16], 42, SystemTime::now());
        let version = VersionToken::from_u64(42);
        let opaque = VersionToken::opaque(b"abc").unwrap();
        let all = (Key::new("a.b").unwrap(), version, opaque, cursor);
        let text = serde_json::to_string(&all).unwrap();
        assert!(text.starts_with(r#"["a.b","01000000000000002a","02616263","534b4301"#), "{text}");
        assert_eq!(
            serde_json::from_str::<(Key, VersionToken, VersionToken, WatchCursor)>(&text).unwrap(),
            all
        );
    }

    #[cfg(feature = "messagepack")]
    #[test]
    fn binary_formats_contain_raw_bytes() {
        let all = (Key::new("a.b").unwrap(), WatchCursor::new([7; 16], 42, SystemTime::now()));
        let bytes = rmp_serde::to_vec(&all).unwrap();
        assert!(bytes.len() < 50, "{}", bytes.len());
        assert_eq!(rmp_serde::from_slice::<(Key, WatchCursor)>(&bytes).unwrap(), all);
    }

    #[test]
    fn invalid_text_is_an_error() {
        let key = serde_json::from_str::<Key>("\"a..b\"").unwrap_err().to_string();
        assert!(key.contains("byte 2"), "{key}");
        for text in ["", "0", "zz", "+1", "01", "é"] {
            assert!(serde_json::from_str::<VersionToken>(&format!("{text:?}")).is_err(), "{text}");
            assert!(serde_json::from_str::<WatchCursor>(&format!("{text:?}")).is_err(), "{text}");
        }
    }
}
