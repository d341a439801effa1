//! Tests of the messages, and of the input to which each belongs. `tests/ui/` has the cases whose
//! position in the source matters too.

use super::*;

/// Returns the message for an input, or an empty string.
fn rejection(input: &str, check: fn(&Input<'_>) -> Result<()>) -> String {
    let checked = syn::parse_str(input).and_then(|input| {
        let (input, read) = Input::new(&input);
        read.and_then(|()| check(&input))
    });
    checked.err().map_or_else(String::new, |error| error.to_string())
}

fn record_rejection(input: &str) -> String {
    rejection(input, |input| record(input).and_then(|_| options(input)).map(|_| ()))
}

fn static_rejection(input: &str) -> String {
    rejection(input, |input| static_key(input).and_then(|_| options(input)).map(|_| ()))
}

/// Compares messages: each is empty for a valid input, and otherwise contains the expected text.
fn assert_messages(rows: &[(&str, &str)], rejection: impl Fn(&str) -> String) {
    for (input, message) in rows {
        let found = rejection(input);
        assert_eq!(message.is_empty(), found.is_empty(), "{input}: {found}");
        assert!(found.contains(message), "{input}: {found}");
    }
}

#[test]
fn templates() {
    let long = format!("a.{{id}}.{}", "b".repeat(1024));
    let rows = [
        ("user.{id}", ""),
        ("{id}", ""),
        ("{id}.{name}", ""),
        ("a=/_-9.{name}.z", ""),
        ("", "a key has at least one token"),
        ("user", "the key names no field"),
        ("{", "'{' at byte 0 is not closed"),
        ("a.{id", "'{' at byte 2 is not closed"),
        ("a.id}", "'}' at byte 4 closes nothing"),
        ("{}", "`{}` at byte 0 names no field of `User`; it has `{id}`, `{name}`"),
        ("{id:05}", "`{id:05}` at byte 0 names no field of `User`; did you mean `{id}`?"),
        ("{nam}", "did you mean `{name}`?"),
        ("a.{a.b}", "`{a.b}` at byte 2 names no field"),
        ("{id}{name}", "`{id}` at byte 0 is a part of a token"),
        ("a-{id}", "`{id}` at byte 2 is a part of a token"),
        ("{id}.{name}.{id}", "`{id}` at byte 12 is there twice"),
        ("a b.{id}", "' ' at byte 1: keys are tokens of"),
        ("{id}.ü", "'ü' at byte 5: keys are tokens of"),
        ("{id}.", "'.' at byte 4: empty token"),
        (&long, "a key of 1031 bytes at byte 1024: keys are at most"),
    ];
    assert_messages(&rows, |template| {
        record_rejection(&format!(
            "#[kv(key = {template:?})] struct User {{ id: u64, name: String }}"
        ))
    });
}

#[test]
fn records() {
    let rows = [
        ("struct A { #[kv(key)] a: u8, b: u8 }", ""),
        ("struct A { #[kv(key)] a: u8, #[kv(value)] b: u8 }", ""),
        ("struct A(#[kv(value)] u8, #[kv(key)] u8);", ""),
        ("#[kv(key = \"{0}\")] struct A(u8);", ""),
        ("#[kv(key = \"{type}\")] struct A { r#type: u8 }", ""),
        ("#[kv(key = \"{a}\", crate = crate::x)] struct A<T> { a: u8, t: T }", ""),
        ("struct A;", "`A` has no key"),
        ("enum A { B }", "`A` is an enum"),
        (
            "#[kv(key = \"{a}\")] struct A<AKey> { a: u8, b: AKey }",
            "the type parameter `AKey` has the name",
        ),
        ("struct A<AKey> { #[kv(key)] a: u8, b: AKey }", ""),
        ("#[kv(key = \"{a}\")] struct A<'x> { a: &'x str }", "the parameter `'x`"),
        ("#[kv(key = \"{a}\")] struct A<const N: u8> { a: [u8; N] }", "the parameter `N`"),
        ("#[kv(key = \"{a}\")] #[kv(key = \"{a}\")] struct A { a: u8 }", "given twice"),
        ("#[kv(key)] struct A { a: u8 }", "`key` needs a value: write `key = \"…\"`"),
        (
            "#[kv(key = 7)] struct A { a: u8 }",
            "`key` is a string literal, not a constant or a macro",
        ),
        (
            "#[kv(crate)] struct A { a: u8 }",
            "`crate` needs a value: write `crate = path::to::shizuku_kv`",
        ),
        ("#[kv(crate = \"x::y\")] struct A { a: u8 }", "write `crate = x::y`"),
        ("#[kv(keys = \"a\")] struct A { a: u8 }", "unknown option `keys`, did you mean `key`?"),
        ("#[kv = \"a\"] struct A { a: u8 }", "expected"),
        ("struct A { #[kv(crate = a)] a: u8 }", "`crate` belongs on the type"),
    ];
    assert_messages(&rows, record_rejection);
}

#[test]
fn static_keys() {
    let rows = [
        ("#[kv(key = \"a.b\")] struct A;", ""),
        ("#[kv(key = \"a\")] enum A { B(u8) }", ""),
        ("struct A;", "`A` has no key"),
        ("#[kv(key = \"a.{b}\")] struct A { b: u8 }", "derive `KeyValue` instead"),
        ("#[kv(key = \"a\")] struct A { #[kv(key)] b: u8 }", "derive `KeyValue` instead"),
        ("#[kv(key = \"a\")] enum A { #[kv(key)] B }", "it belongs on the enum"),
        ("#[kv(key = \"a\")] enum A { B(#[kv(key)] u8) }", "it belongs on the enum"),
        ("#[kv(key = \"a..b\")] struct A;", "'.' at byte 2: empty token"),
        ("#[kv(key = \"a*\")] struct A;", "'*' at byte 1"),
    ];
    assert_messages(&rows, static_rejection);
}

#[test]
fn options_of_the_type() {
    let rows = [
        ("bucket = \"users\"", ""),
        ("bucket = \"\"", "invalid bucket: it is empty"),
        (&format!("bucket = {:?}", "a".repeat(65)), "it is longer than 64 characters"),
        ("bucket", "`bucket` needs a value: write `bucket = \"…\"`"),
        ("bucket = users", "`bucket` is a string literal"),
        ("ttl = \"1500ms\"", "\"ms\" at byte 4 is shorter than a second"),
        ("ttl = \"1h30m30m\"", "\"m\" at byte 7 follows a unit that is not larger"),
        ("ttl = \"30 s\"", "\" s\" at byte 2 is no unit"),
        ("ttl = \"30sec\"", "\"sec\" at byte 2 is no unit"),
        ("ttl = \"s\"", "'s' at byte 0 is not a digit"),
        ("ttl = \"99999999999999999999d\"", "it is longer than can be counted"),
        ("ttl = \"36500d\"", ""),
        ("ttl = \"1d18446744073709551615s\"", "it is longer than can be counted"),
        ("validate = Self::check", ""),
        ("validate = \"check\"", "no quotes around this: write `validate = check`"),
        ("validate = 7", "`validate` is a path: write `validate = path::to::function`"),
        ("validate", "`validate` needs a value"),
        ("codec = json", ""),
        ("codec = \"json\"", "no quotes around this: write `codec = json`"),
        ("codec = jsno", "unknown codec `jsno`, did you mean `json`?"),
        ("codec = JSON", "unknown codec `JSON`, did you mean `json`?"),
        (
            "codec = toml",
            "unknown codec `toml`; the codecs are `json`, `messagepack`, `postcard`, `protobuf`",
        ),
        ("codec = a::b", "`codec` is a name: write `codec = json`"),
        ("key_type = Name", ""),
        ("key_type = \"Name\"", "no quotes around this: write `key_type = Name`"),
        ("key_serde", ""),
        ("bukcet = \"a\"", "unknown option `bukcet`, did you mean `bucket`?"),
    ];
    assert_messages(&rows, |option| {
        record_rejection(&format!("#[kv(key = \"a.{{id}}\", {option})] struct A {{ id: u8 }}"))
    });
}

#[test]
fn codecs_are_there_with_their_features() {
    for (codec, is_there) in [
        ("messagepack", cfg!(feature = "messagepack")),
        ("postcard", cfg!(feature = "postcard")),
        ("protobuf", cfg!(feature = "protobuf")),
    ] {
        let found = static_rejection(&format!("#[kv(key = \"a\", codec = {codec})] struct A;"));
        let message = format!(
            "the codec `{codec}` is behind a feature: add `features = [\"{codec}\"]` to the dependency on `shizuku-kv`"
        );
        assert_eq!(found, if is_there { String::new() } else { message });
    }
}

#[test]
fn lengths_of_time() {
    for (text, seconds) in [
        ("1s", 1),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5_400),
        ("1d1s", 86_401),
        ("007s", 7),
        ("90m", 5_400),
    ] {
        let literal = LitStr::new(text, Span::call_site());
        assert_eq!(literal::duration(&literal).ok(), Some(Duration::from_secs(seconds)), "{text}");
    }
}

#[test]
fn options_of_another_position_are_rejected() {
    let rows = [
        (
            "#[kv(codec = json)] struct A(#[kv(key)] u8, #[kv(value)] u8);",
            "derive it there, on the type of `1`, as with `JsonByteSer`",
        ),
        ("#[kv(key = \"{a}\")] struct A { a: f64 }", "a float cannot be in a key"),
        ("#[kv(key = \"{a}\")] struct A { a: Option<u8> }", "an `Option` cannot be in a key"),
        (
            "#[kv(key = \"{a}\")] struct A { a: std::vec::Vec<u8> }",
            "a collection cannot be in a key",
        ),
        (
            "#[kv(key = \"{a}\")] struct A { a: &'static str }",
            "use `String` instead of a reference",
        ),
        ("#[kv(key = \"{a}\")] struct A { a: (u8, u8) }", "because it does not print"),
        ("#[kv(key = \"{a}\")] struct A { a: geo::f64 }", ""),
        (
            "#[kv(key = \"{a}\")] struct A { #[serde(default, skip)] a: u8 }",
            "a field of the key must be in the stored record",
        ),
        (
            "#[kv(key = \"{a}\")] struct A { #[serde(rename = \"skip\")] a: u8, #[serde(skip)] b: u8 }",
            "",
        ),
        ("#[kv(key = \"{a}\")] struct A { a: f32 }", "a float cannot be in a key"),
        ("#[kv(key = \"{a}\")] struct A { a: VecDeque<u8> }", "a collection cannot be in a key"),
        (
            "#[kv(key = \"{a}\")] struct A { a: Cow<'static, str> }",
            "cannot be in a key: use `String`",
        ),
        (
            "#[kv(key = \"{a}\")] struct A { a: std::rc::Rc<str> }",
            "cannot be in a key: use `String`",
        ),
        ("#[kv(key = \"{a}\")] struct A { a: <Self as B>::C }", "the parameter `Self`"),
        ("#[kv(key = \"{a}\", crate = b<u8>)] struct A { a: u8 }", "a crate has no parameters"),
        ("#[kv(key = \"{a}\")] struct A { a: Option }", ""),
        ("#[kv(key = \"{a}\")] struct A { a: mine::Option<u8> }", ""),
        (
            "#[kv(key = \"{a}\")] struct A { a: std::option::Option<u8> }",
            "an `Option` cannot be in a key",
        ),
        ("struct A { #[kv(key)] a: f64 }", "a float cannot be in a key"),
        (
            "struct A(#[kv(key)] std::primitive::f32, #[kv(value)] u8);",
            "a float cannot be in a key",
        ),
        ("struct A { #[kv(key)] a: mine::f64 }", ""),
        (
            "struct A { #[kv(key)] #[serde(skip)] a: u8 }",
            "a field of the key must be in the stored record",
        ),
        (
            "struct A { #[kv(key)] #[serde(skip_serializing_if = \"f\")] a: u8 }",
            "a field of the key must be in the stored record",
        ),
        (
            "struct A { #[kv(key)] #[serde(rename = \"b\", flatten)] a: u8 }",
            "a field of the key must be in the stored record",
        ),
        ("struct A { #[kv(key)] #[serde(default, rename = \"skip\")] a: u8 }", ""),
        ("struct A { #[kv(key)] a: u8, #[serde(skip)] b: u8 }", ""),
        ("struct A(#[kv(key)] #[serde(skip)] u8, #[kv(value)] u8);", ""),
        (
            "#[kv(key = \"{a}\")] struct A { #[serde(skip_serializing_if = \"f\")] a: u8 }",
            "a field of the key must be in the stored record",
        ),
        (
            "#[kv(key = \"{a}\")] struct A { #[serde(flatten)] a: u8 }",
            "a field of the key must be in the stored record",
        ),
        ("struct A { #[kv(key)] a: Option<u8> }", "an `Option` cannot be in a key"),
        (
            "struct A(#[kv(key)] &'static str, #[kv(value)] u8);",
            "use `String` instead of a reference",
        ),
        (
            "struct A { #[kv(bucket = \"b\")] a: u8 }",
            "`bucket` belongs on the type, not on a field",
        ),
    ];
    assert_messages(&rows, record_rejection);
}

#[test]
fn attributes_that_break_the_round_trip() {
    const POSTCARD: &str = if cfg!(feature = "postcard") { "postcard" } else { "json" };
    let both = |codec: &str, item: &str| {
        static_rejection(&format!("#[kv(key = \"a\", codec = {codec})] {item}"))
    };
    let rows = [
        (
            "struct A { a: Option<u8>, #[serde(skip)] b: u8, #[serde(default, alias = \"d\")] c: u8 }",
            "",
        ),
        ("struct A { #[serde(skip_serializing, default)] a: u8 }", ""),
        ("struct A { #[serde(skip_serializing)] a: Option<u8> }", ""),
        ("#[serde(default)] struct A { #[serde(skip_serializing)] a: u8 }", ""),
        ("struct A { #[serde(skip_serializing, skip_deserializing)] a: u8 }", ""),
        ("#[serde(into = \"B\", from = \"B\")] struct A { #[serde(skip_serializing)] a: u8 }", ""),
        ("struct A { #[serde(rename(serialize = \"b\", deserialize = \"b\"))] a: u8 }", ""),
        ("struct A { #[serde(rename(serialize = \"b\"), alias = \"b\")] a: u8 }", ""),
        ("struct A { #[serde(skip_serializing_if = \"f\", default)] a: u8 }", ""),
        ("struct A { #[serde(skip_serializing_if = \"f\")] a: Option<u8> }", ""),
        (
            "struct A { #[serde(skip_serializing_if = \"f\")] a: Vec<u8> }",
            "left out when the record is written",
        ),
        (
            "struct A { #[serde(with = \"w\", skip_serializing_if = \"f\")] a: Option<u8> }",
            "left out when the record is written, and required when it is read",
        ),
        ("#[serde(tag = \"t\")] enum A { #[serde(skip)] B, C { #[serde(flatten)] d: D } }", ""),
        ("#[serde(tag = \"t\", content = \"c\")] enum A { B { b: u128 } }", ""),
        (
            "struct A { #[serde(skip_serializing)] a: u8 }",
            "this field is left out when the record is written, and required",
        ),
        (
            "enum A { B { #[serde(skip_serializing)] a: u8 } }",
            "this field is left out when the record is written",
        ),
        (
            "enum A { #[serde(skip_deserializing)] B }",
            "this variant would be written and never read",
        ),
        (
            "#[serde(deny_unknown_fields)] struct A { #[serde(skip_deserializing)] a: u8 }",
            "rejected by `deny_unknown_fields` when the record is read",
        ),
        (
            "struct A { #[serde(rename(serialize = \"b\"))] a: u8 }",
            "under one name and read under another",
        ),
        (
            "enum A { #[serde(rename(serialize = \"b\", deserialize = \"c\"))] B }",
            "under one name and read",
        ),
        (
            "#[serde(rename_all(serialize = \"lowercase\", deserialize = \"UPPERCASE\"))] struct A { a: u8 }",
            "names are written in one case and read in another",
        ),
        (
            "struct A(#[serde(skip_serializing_if = \"f\")] u8, u8);",
            "a field without a name that is left out shifts all fields after it",
        ),
        (
            "enum A { B(#[serde(skip_deserializing)] u8, u8) }",
            "a field without a name that is left out shifts all fields after it",
        ),
        ("#[serde(untagged)] enum A { B { b: u128 } }", "serde cannot read a 128-bit number"),
        (
            "#[serde(tag = \"t\")] enum A { B { b: std::primitive::i128 } }",
            "serde cannot read a 128-bit number",
        ),
    ];
    assert_messages(&rows, |item| both("json", item));
    if POSTCARD == "json" {
        return;
    }
    let rows = [
        ("struct A { #[serde(skip)] a: u8, #[serde(rename(serialize = \"b\"))] c: u8 }", ""),
        ("enum A { #[serde(other)] B, C(u8) }", ""),
        ("struct A { #[serde(flatten)] a: u8 }", "postcard cannot read a type with `flatten`"),
        ("enum A { B, #[serde(untagged)] C }", "postcard cannot read a type with `untagged`"),
        ("struct A { #[serde(skip_serializing_if = \"f\")] a: u8 }", "postcard stores no names"),
        ("struct A(#[serde(skip_serializing_if = \"f\")] u8);", "postcard stores no names"),
        ("struct A { #[serde(skip_deserializing)] a: u8 }", "postcard stores no names"),
        ("enum A { B { #[serde(skip_serializing, default)] a: u8 } }", "postcard stores no names"),
    ];
    assert_messages(&rows, |item| both(POSTCARD, item));
}

/// The message marks the position itself if the compiler cannot point into the literal.
#[test]
fn position_in_a_literal_is_shown() {
    let show = |text: &str| {
        let found = static_rejection(&format!("#[kv(key = {text:?})] struct A;"));
        found.split_once('\n').map(|(_, picture)| picture.to_owned())
    };
    assert_eq!(show("config.data base").as_deref(), Some("    config.data base\n               ^"));
    assert_eq!(show("ключ").as_deref(), Some("    ключ\n    ^"));
    assert_eq!(show("a\u{1b}b"), None);
    assert_eq!(show(&" ".repeat(81)), None);
}
