//! Conversions into keys with text fields: from any text type, and from the tuples of their fields.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shizuku_kv::KeyValue;

use super::{Outcome, store};

#[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "page.{name}", codec = json)]
struct Page {
    name: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "user.{tenant}.{id}.{name}", codec = json)]
struct User {
    tenant: String,
    id: u64,
    // The same type under another path.
    name: std::string::String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, KeyValue)]
#[kv(key = "port.{number}", codec = json)]
struct Port {
    number: u16,
}

/// A user's own type that is named like the standard library's.
mod own {
    use std::convert::Infallible;
    use std::fmt;
    use std::str::FromStr;

    use shizuku_kv::KeyValue;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(super) struct String(std::string::String);

    impl From<&str> for String {
        fn from(text: &str) -> Self {
            Self(text.to_lowercase())
        }
    }

    impl fmt::Display for String {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl FromStr for String {
        type Err = Infallible;

        fn from_str(text: &str) -> Result<Self, Infallible> {
            Ok(Self(text.to_owned()))
        }
    }

    #[derive(Debug, KeyValue)]
    #[kv(key = "own.{name}")]
    #[allow(dead_code, reason = "only its key is used")]
    pub(super) struct One {
        name: String,
    }

    #[derive(Debug, KeyValue)]
    #[kv(key = "own.{name}.{id}")]
    #[allow(dead_code, reason = "only its key is used")]
    pub(super) struct Two {
        name: String,
        id: u64,
    }
}

fn is<K: Debug + PartialEq>(expected: &K, made: impl Into<K>) {
    assert_eq!(made.into(), *expected);
}

/// All text types except `String`.
macro_rules! texts {
    ($text:ident => $check:expr) => {{
        let (boxed, shared): (Box<str>, Arc<str>) = ("acme".into(), "acme".into());
        let (owned, cow) = ("acme".to_owned(), Cow::Borrowed("acme"));
        texts!(
            $text => $check;
            "acme", &"acme", &owned, boxed.clone(), &boxed, shared.clone(), &shared, cow.clone(), &cow,
            Cow::<str>::Owned("acme".to_owned())
        );
    }};
    ($text:ident => $check:expr; $($value:expr),*) => {$({
        let $text = $value;
        $check;
    })*};
}

#[test]
fn text_field_accepts_any_text() {
    let page = PageKey { name: "acme".to_owned() };
    texts!(text => is(&page, text));
    texts!(text => is(&page, (text,)));
    is(&page, "acme".to_owned());
    is(&page, ("acme".to_owned(),));
    is(&page, &page);
    is(&page, page.clone());
}

#[test]
fn text_fields_beside_others_accept_any_text() {
    let user = UserKey { tenant: "acme".to_owned(), id: 7, name: "acme".to_owned() };
    texts!(text => is(&user, (text, 7, "acme")));
    texts!(text => is(&user, ("acme".to_owned(), 7, text)));
    is(&user, ("acme", 7, "acme".to_owned()));
    is(&user, &user);
}

#[test]
fn one_tuple_converts_to_a_key_of_one_field() {
    is(&PortKey { number: Port { number: 7 }.number }, 7);
    is(&PortKey { number: 7 }, (7,));
}

#[test]
fn type_named_string_accepts_itself_and_text() {
    let name = own::String::from("acme");
    let (one, two) = (own::OneKey::from(name.clone()), own::TwoKey::from((name.clone(), 7)));
    is(&one, (name,));
    texts!(text => is(&one, text));
    texts!(text => is(&two, (text, 7)));
    // Converted by the type's own `From`.
    is(&one, "ACME");
    assert_eq!(two.to_string(), "own.acme.7");
}

#[tokio::test]
async fn operations_accept_any_text_as_a_key() -> Outcome {
    let store = store().await;
    let page = Page { name: "acme".to_owned() };
    page.write_to_anyway(&store).await?;
    let user = User { tenant: "acme".to_owned(), id: 7, name: "a".to_owned() };
    user.write_to_anyway(&store).await?;
    texts!(text => assert_eq!(Page::read_from(&store, text).await?.as_ref(), Some(&page)));
    texts!(text => assert_eq!(User::read_from(&store, (text, 7, "a")).await?.as_ref(), Some(&user)));
    store.put("acme", "x").await?;
    texts!(text => assert_eq!(store.get(text).await?.ok_or("it is absent")?.value, "x"));
    Ok(())
}
