//! Which scope covers which, and a scope for several.

use std::collections::BTreeSet;

use crate::store::WatchScope;

/// How many prefixes a wide scope may have: each is a filter on the server.
const PREFIXES: usize = 8;

/// Whether everything in `part` is in `whole`, as far as the scopes show it.
pub(super) fn covers(whole: &WatchScope, part: &WatchScope) -> bool {
    match (whole, part) {
        (WatchScope::All, _) => true,
        (WatchScope::Key(whole), WatchScope::Key(part)) => whole == part,
        (whole, WatchScope::Key(part)) => whole.matches(part),
        (WatchScope::Key(_), _) | (_, WatchScope::All) => false,
        (whole, part) => prefixes(part).iter().all(|part| whole.matches(part)),
    }
}

/// A scope that covers all of these, in few prefixes: by the first token, or everything.
pub(super) fn widened<'s>(scopes: impl IntoIterator<Item = &'s WatchScope>) -> WatchScope {
    let mut wide = BTreeSet::new();
    for scope in scopes {
        if matches!(scope, WatchScope::All) {
            return WatchScope::All;
        }
        for prefix in prefixes(scope) {
            wide.insert(prefix.split_inclusive('.').next().unwrap_or_default().to_owned());
        }
    }
    if wide.len() > PREFIXES || wide.contains("") { WatchScope::All } else { WatchScope::prefixes(wide) }
}

fn prefixes(scope: &WatchScope) -> Vec<&str> {
    match scope {
        WatchScope::All => vec![""],
        WatchScope::Key(key) => vec![key.as_str()],
        WatchScope::Prefix(prefix) => vec![prefix],
        WatchScope::Prefixes(prefixes) => prefixes.iter().map(String::as_str).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Key, KvResult};

    fn key(key: &str) -> KvResult<WatchScope> {
        Ok(WatchScope::Key(Key::new(key)?))
    }

    #[test]
    fn what_covers_what() -> KvResult<()> {
        let prefix = |prefix: &str| WatchScope::prefix(prefix);
        for (whole, part, expected) in [
            (WatchScope::All, WatchScope::All, true),
            (WatchScope::All, key("a")?, true),
            (key("a")?, key("a")?, true),
            (key("a")?, key("ab")?, false),
            (key("a")?, prefix("a"), false),
            (key("a")?, WatchScope::All, false),
            (prefix("a."), key("a.b")?, true),
            (prefix("a."), key("a")?, false),
            (prefix("a."), prefix("a.b"), true),
            (prefix("a."), prefix("a."), true),
            (prefix("a.b"), prefix("a."), false),
            (prefix(""), prefix("a."), true),
            (prefix("a."), WatchScope::All, false),
            (WatchScope::prefixes(["a.", "b."]), WatchScope::prefixes(["b.c", "a."]), true),
            (WatchScope::prefixes(["a.", "b."]), WatchScope::prefixes(["b.c", "c."]), false),
            (WatchScope::prefixes(["a.", "b."]), key("b.x")?, true),
        ] {
            assert_eq!(covers(&whole, &part), expected, "{whole:?} {part:?}");
        }
        Ok(())
    }

    #[test]
    fn a_wide_scope_covers_all_it_was_made_of() -> KvResult<()> {
        let sets = [
            vec![key("user.1")?, key("user.2")?],
            vec![key("a")?, key("b.c")?, WatchScope::prefix("d.e.f")],
            vec![WatchScope::prefix("us"), key("user.2")?],
            vec![WatchScope::prefix("")],
            vec![WatchScope::All, key("a")?],
            (0..20).map(|number| key(&format!("t{number}.x"))).collect::<KvResult<_>>()?,
        ];
        for set in sets {
            let wide = widened(&set);
            assert!(set.iter().all(|scope| covers(&wide, scope)), "{wide:?} {set:?}");
        }
        assert_eq!(widened(&[key("user.1")?, key("user.2")?]), WatchScope::prefixes(["user."]));
        Ok(())
    }
}
