//! Keys of templates: they print and parse, no value leaves its token, and no two records share
//! one.

#![allow(dead_code, reason = "only the keys of these records are used")]

use proptest::prelude::*;
use shizuku_kv::{Key, KeyValue, WatchScope};

#[derive(Debug, Clone, PartialEq, KeyValue)]
#[kv(key = "all.{text}.{number}.{character}")]
struct All {
    text: String,
    number: i64,
    character: char,
}

/// Templates with the same literal prefix.
#[derive(Debug, KeyValue)]
#[kv(key = "p.{a}")]
struct One {
    a: String,
}

#[derive(Debug, KeyValue)]
#[kv(key = "p.{a}.{b}")]
struct Two {
    a: String,
    b: String,
}

#[derive(Debug, KeyValue)]
#[kv(key = "p.{a}.x")]
struct OneThenLiteral {
    a: String,
}

#[derive(Debug, KeyValue)]
#[kv(key = "p.{a}.y")]
struct OneThenOther {
    a: String,
}

#[derive(Debug, KeyValue)]
#[kv(key = "p.{a}.{b}.{c}")]
struct Three {
    a: String,
    b: String,
    c: String,
}

/// Any text, often with text that resembles the syntax of keys.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".*",
        "[-a.=_kvxy>*/2E ]{0,6}",
        Just(String::new()),
        Just("x".to_owned()),
        Just("y".to_owned()),
        Just("=".to_owned()),
        Just(">".to_owned()),
        Just("x.y".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Uses any text in any field: the key is valid, has its four tokens, and parses to the same
    /// fields.
    #[test]
    fn keys_print_and_parse(text in text(), number: i64, character: char) {
        let key = AllKey { text, number, character };
        let printed = key.to_string();
        prop_assert!(printed.len() > 1024 || Key::new(&printed).is_ok(), "{}", printed);
        prop_assert_eq!(printed.split('.').count(), 4);
        prop_assert_eq!(printed.parse::<AllKey>().unwrap(), key);
    }

    /// A key that parses prints as the same text, so that a record has one key.
    #[test]
    fn parsed_keys_print_as_they_were(text in "(p|all)?\\.?([-=_kv.0-9A-F+a/]{0,8}\\.){0,3}[-=_kv.0-9A-F+a/]{0,4}") {
        if let Ok(key) = text.parse::<TwoKey>() {
            prop_assert_eq!(key.to_string(), text.clone());
        }
        if let Ok(key) = text.parse::<AllKey>() {
            prop_assert_eq!(key.to_string(), text);
        }
    }

    /// Two keys of one template are the same text only if they are the same key.
    #[test]
    fn no_two_records_share_a_key(a in text(), b in text(), c in text(), d in text()) {
        let (first, second) = (TwoKey { a, b }, TwoKey { a: c, b: d });
        prop_assert_eq!(first == second, first.to_string() == second.to_string());
    }

    /// Templates with the same literal prefix never share a key if they differ in length or in a
    /// literal. A field and a literal at the same position share keys only for exactly that value.
    #[test]
    fn templates_with_the_same_prefix_stay_apart(
        texts in proptest::array::uniform8(text()),
    ) {
        let [a, b, c, d, e, f, g, h] = texts;
        let one = OneKey { a: a.clone() }.to_string();
        let two = TwoKey { a: b.clone(), b: c.clone() };
        let three = ThreeKey { a: d, b: e, c: f }.to_string();
        let literal = OneThenLiteralKey { a: g.clone() };
        let other = OneThenOtherKey { a: h }.to_string();
        prop_assert_ne!(&one, &two.to_string());
        prop_assert_ne!(&one, &three);
        prop_assert_ne!(&one, &literal.to_string());
        prop_assert_ne!(&two.to_string(), &three);
        prop_assert_ne!(&literal.to_string(), &other);
        prop_assert_ne!(&literal.to_string(), &three);
        prop_assert_eq!(two.to_string() == literal.to_string(), b == g && c == "x");
        // Does the same with the value of the literal, so that the keys are equal.
        let named = TwoKey { a: g, b: c.clone() };
        prop_assert_eq!(named.to_string() == literal.to_string(), c == "x");
        // Neither parses as the other, unless they are the same.
        prop_assert_eq!(literal.to_string().parse::<OneKey>().ok(), None);
        prop_assert_eq!(two.to_string().parse::<OneThenLiteralKey>().is_ok(), c == "x");
    }

    /// A scope by leading fields has the records with those values, and no others.
    #[test]
    fn scopes_are_exact(a in text(), b in text(), c in text(), x in text(), y in text()) {
        let key = ThreeKey { a: a.clone(), b: b.clone(), c };
        let printed = key.to_string();
        prop_assert!(ThreeKey::scope().matches(&printed));
        prop_assert_eq!(ThreeKey::scope_a(&x).matches(&printed), a == x);
        prop_assert_eq!(ThreeKey::scope_b(&x, &y).matches(&printed), a == x && b == y);
        prop_assert!(ThreeKey::scope_a(&a).matches(&printed));
        prop_assert!(ThreeKey::scope_b(&a, b).matches(&printed));
        let scope = ThreeKey::scope_a(a);
        let is_prefix = matches!(scope, WatchScope::Prefix(prefix) if prefix.ends_with('.'));
        prop_assert!(is_prefix);
    }
}
