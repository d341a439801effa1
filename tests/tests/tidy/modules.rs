//! The modules of a crate and their imports, read from its source without test code.

use std::collections::{BTreeMap, BTreeSet};

use crate::lex::{Kind, without};

/// A module: a file, with its inline modules.
#[derive(Debug, Default)]
struct Module {
    imports: Vec<Import>,
    /// Paths with two names or more outside of `use`.
    paths: Vec<Vec<String>>,
    names: BTreeSet<String>,
}

#[derive(Debug)]
struct Import {
    /// The name in this module.
    name: String,
    path: Vec<String>,
    is_reexport: bool,
}

/// All modules of a crate by path (`store::contract`); the root is the empty path.
#[derive(Debug, Default)]
pub(crate) struct Modules(BTreeMap<String, Module>);

/// An import of one module by another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub(crate) from: String,
    pub(crate) to: String,
    /// Whether the importing module only passes the name on.
    pub(crate) is_reexport: bool,
}

impl Modules {
    /// Reads the crate whose root is `lib.rs`. `read` returns the source at a path beside it.
    pub(crate) fn read(read: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut modules = Self::default();
        modules.add(String::new(), "lib.rs", "", read);
        modules
    }

    /// Adds the module of a file; those that it declares are in `folder`.
    fn add(
        &mut self,
        path: String,
        file: &str,
        folder: &str,
        read: &dyn Fn(&str) -> Option<String>,
    ) {
        let source = read(file).unwrap_or_else(|| panic!("{file} of module {path} is not there"));
        let tokens = without_tests(&tokens(&source));
        let mut module = Module::default();
        let mut declared = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let begins =
                at == 0 || [";", "{", "}", "]", ")", "pub"].contains(&tokens[at - 1].as_str());
            if tokens[at] == "use" && begins {
                let is_reexport = at > 0 && ["pub", ")"].contains(&tokens[at - 1].as_str());
                let end = at + position(&tokens[at..], ";");
                let mut found = Vec::new();
                use_tree(&tokens[at + 1..end], &[], &mut found);
                let imports =
                    found.into_iter().map(|(name, path)| Import { name, path, is_reexport });
                module.imports.extend(imports);
                at = end;
            } else if tokens[at] == "mod" && tokens.get(at + 2).is_some_and(|token| token == ";") {
                declared.push(tokens[at + 1].clone());
                at += 2;
            } else if is_name(&tokens[at]) {
                let end = path_end(&tokens, at);
                let names = tokens[at..end].iter().filter(|token| *token != "::").cloned();
                let path: Vec<String> = names.collect();
                module.names.extend(path.iter().cloned());
                if path.len() > 1 {
                    module.paths.push(path);
                }
                at = end;
                continue;
            }
            at += 1;
        }
        self.0.insert(path.clone(), module);
        for name in declared {
            let beside = format!("{folder}{name}.rs");
            let inside = format!("{folder}{name}/mod.rs");
            let renamed = format!("{folder}{}.rs", name.trim_start_matches('_'));
            let files = [beside, inside, renamed];
            let file = files.into_iter().find(|file| read(file).is_some());
            let file = file.unwrap_or_else(|| panic!("no file of module {name} in {folder}"));
            self.add(joined(&path, &name), &file, &format!("{folder}{name}/"), read);
        }
    }

    /// Returns all imports except those of the root, which only passes names on.
    pub(crate) fn edges(&self) -> BTreeSet<Edge> {
        let mut edges = BTreeSet::new();
        for (from, module) in self.0.iter().filter(|(from, _)| !from.is_empty()) {
            let imports = module.imports.iter().map(|import| {
                let is_reexport = import.is_reexport && !module.names.contains(&import.name);
                (&import.path, is_reexport)
            });
            let paths = module.paths.iter().map(|path| (path, false));
            for (path, is_reexport) in imports.chain(paths) {
                if let Some(to) = self.resolve(from, path, 0).filter(|to| to != from) {
                    edges.insert(Edge { from: from.clone(), to, is_reexport });
                }
            }
        }
        edges
    }

    /// Returns the module that defines what `path` names in `module`, or `None` if it is of another
    /// crate.
    fn resolve(&self, module: &str, path: &[String], depth: usize) -> Option<String> {
        let (first, rest) = path.split_first()?;
        assert!(depth < 64, "imports of {path:?} in {module} go in a circle");
        match first.as_str() {
            "crate" => self.descend("", rest, depth),
            "self" => self.descend(module, rest, depth),
            "super" => {
                let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
                match rest.first() {
                    Some(next) if next == "super" => self.resolve(parent, rest, depth + 1),
                    _ => self.descend(parent, rest, depth),
                }
            }
            _ if self.0.contains_key(&joined(module, first)) => self.descend(module, path, depth),
            _ => {
                let imports = &self.0.get(module)?.imports;
                // A name of another crate may also be that of an import: `serde::Serialize`.
                let import = imports
                    .iter()
                    .find(|import| import.name == *first && import.path[0] != *first)?;
                self.resolve(module, &[import.path.as_slice(), rest].concat(), depth + 1)
            }
        }
    }

    fn descend(&self, module: &str, path: &[String], depth: usize) -> Option<String> {
        let Some((first, rest)) = path.split_first() else { return Some(module.to_owned()) };
        let child = joined(module, first);
        if self.0.contains_key(&child) {
            return self.descend(&child, rest, depth + 1);
        }
        match self.0.get(module)?.imports.iter().find(|import| import.name == *first) {
            Some(import) => {
                self.resolve(module, &[import.path.as_slice(), rest].concat(), depth + 1)
            }
            None => Some(module.to_owned()),
        }
    }
}

fn joined(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

/// Returns the names and paths that a tree of `use` brings.
fn use_tree(tokens: &[String], prefix: &[String], found: &mut Vec<(String, Vec<String>)>) {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while at < tokens.len() && tokens[at] != "as" {
        match tokens[at].as_str() {
            "{" => {
                let inner = &tokens[at + 1..tokens.len() - 1];
                let mut start = 0;
                let mut depth = 0;
                for (end, token) in inner.iter().enumerate() {
                    match token.as_str() {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        "," if depth == 0 => {
                            use_tree(&inner[start..end], &path, found);
                            start = end + 1;
                        }
                        _ => {}
                    }
                }
                if start < inner.len() {
                    use_tree(&inner[start..], &path, found);
                }
                return;
            }
            "::" => {}
            "self" if !path.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
    let renamed = tokens.get(at + 1).filter(|_| at < tokens.len());
    if let Some(name) = renamed.or_else(|| path.last()).cloned() {
        found.push((name, path));
    }
}

/// Returns the end of the path that starts at `at`.
fn path_end(tokens: &[String], at: usize) -> usize {
    let goes_on = |end: usize| {
        tokens.get(end).is_some_and(|token| token == "::")
            && tokens.get(end + 1).is_some_and(|token| is_name(token))
    };
    let mut end = at + 1;
    while goes_on(end) {
        end += 2;
    }
    end
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Returns the names, `::` and signs of Rust source.
fn tokens(source: &str) -> Vec<String> {
    let code = without(source, &[Kind::Comment, Kind::Literal]).replace("r#", "  ");
    let mut found = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        found.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    found
}

/// Returns the tokens without items that exist only in tests.
fn without_tests(tokens: &[String]) -> Vec<String> {
    let is_test = |at: usize| {
        let ahead = tokens[at..].iter().take(7).map(String::as_str).collect::<Vec<_>>().concat();
        ahead.starts_with("#[cfg(test)]") || ahead.starts_with("#[cfg(all(test")
    };
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_test(at) {
            at = item_end(tokens, at);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Returns the end of the item, statement or field that begins with attributes at `at`.
fn item_end(tokens: &[String], mut at: usize) -> usize {
    while tokens[at] == "#" {
        at += 1 + group_length(&tokens[at + 1..]);
    }
    let start = at;
    while at < tokens.len() {
        match tokens[at].as_str() {
            ";" => return at + 1,
            // A comma ends a field, but in an item it is one of its generics.
            "," if !tokens[start..at]
                .iter()
                .any(|token| ["fn", "impl", "struct"].contains(&token.as_str())) =>
            {
                return at + 1;
            }
            "}" => return at,
            "{" => return at + group_length(&tokens[at..]),
            "(" | "[" => at += group_length(&tokens[at..]),
            _ => at += 1,
        }
    }
    at
}

/// Returns the length of the group in brackets that the tokens start with.
fn group_length(tokens: &[String]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

fn position(tokens: &[String], sought: &str) -> usize {
    tokens.iter().position(|token| token == sought).unwrap_or(tokens.len())
}

/// Returns the modules of a crate made of files with the given sources.
pub(crate) fn of_files(files: &[(&str, &str)]) -> Modules {
    Modules::read(&|path| {
        files.iter().find(|(file, _)| *file == path).map(|(_, source)| (*source).to_owned())
    })
}

#[test]
fn imports_lead_to_the_module_that_defines_the_name() {
    let modules = of_files(&[
        ("lib.rs", "mod a; pub mod b; pub use a::{deep::Deep, Own};"),
        ("a/mod.rs", "pub(crate) mod deep; pub use deep::Deep as Other; pub struct Own;"),
        ("a/deep.rs", "use super::Own; pub struct Deep; // use crate::b::X;\n"),
        (
            "b.rs",
            "use crate::{Deep, a::{self, Other as Alias}}; use std::fmt; fn f() { a::deep::g(); \"crate::b\"; }\n\
             #[cfg(test)] #[allow(unused)] mod tests { use crate::c::Absent; }\n\
             struct S { #[cfg(test)] field: crate::a::Own, other: u8 }",
        ),
    ]);
    let edges = modules.edges();
    let found: Vec<_> =
        edges.iter().map(|edge| (&*edge.from, &*edge.to, edge.is_reexport)).collect();
    let expected = [
        ("a", "a::deep", true),
        ("a::deep", "a", false),
        ("b", "a", false),
        ("b", "a::deep", false),
    ];
    assert_eq!(found, expected);
}
