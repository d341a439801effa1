//! The order of layers: no module imports one of a higher layer, and no modules import each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::modules::{Edge, Modules};
use crate::{
    modules::of_files,
    recorded::{CYCLES, UPWARD},
};

/// The modules at the root of the library, each above those before it.
const LAYERS: [&str; 14] = [
    "table",
    "local_file",
    "store",
    "backend",
    "connect",
    "watch",
    "record",
    "snapshot",
    "replica",
    "rw_lock",
    "live",
    "prelude",
    "conformance",
    "guide",
];

/// Compares the imports that break the order with the recorded ones, which must be the same. The
/// error is a text for the person who made the change.
pub(crate) fn check(
    modules: &Modules,
    recorded_upward: &[(&str, &str)],
    recorded_cycles: &[&[&str]],
) -> Result<(), String> {
    let edges = modules.edges();
    let mut report = String::new();
    let upward: BTreeSet<(&str, &str)> = edges.iter().filter_map(upward).collect();
    for (from, to) in &upward {
        if !recorded_upward.contains(&(from, to)) {
            let _ = writeln!(report, "{from} imports {to}, which is in a higher layer");
        }
    }
    for (from, to) in recorded_upward.iter().filter(|recorded| !upward.contains(*recorded)) {
        let _ = writeln!(report, "{from} imports {to} no longer: remove it from `UPWARD`");
    }
    let cycles = cycles(&edges);
    for cycle in cycles.iter().filter(|cycle| !recorded_cycles.iter().any(|known| known == cycle)) {
        let holds = |known: &&&[&str]| cycle.iter().all(|module| known.contains(&module.as_str()));
        if recorded_cycles.iter().any(|known| holds(&known)) {
            let _ = writeln!(report, "a cycle is smaller now: record {cycle:?} in `CYCLES`");
            continue;
        }
        let _ = writeln!(report, "these modules import each other: {cycle:?}");
        let known = |module: &String| recorded_cycles.concat().contains(&module.as_str());
        for Edge { from, to, .. } in edges.iter().filter(|edge| {
            let joins = !known(&edge.from) || !known(&edge.to);
            !edge.is_reexport && joins && cycle.contains(&edge.from) && cycle.contains(&edge.to)
        }) {
            let _ = writeln!(report, "  {from} imports {to}");
        }
    }
    for known in recorded_cycles {
        let remains = |cycle: &Vec<String>| cycle.iter().any(|module| known.contains(&&**module));
        if !cycles.iter().any(remains) {
            let _ = writeln!(report, "the cycle of {known:?} is gone: remove it from `CYCLES`");
        }
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}

/// Returns an import that goes up. The root may be imported: it only passes names on.
fn upward(edge: &Edge) -> Option<(&str, &str)> {
    let layer = |module: &str| {
        let name = module.split("::").next().unwrap_or_default();
        let layer = LAYERS.iter().position(|layer| *layer == name);
        layer.unwrap_or_else(|| panic!("module {name} is not in `LAYERS`: add it in its place"))
    };
    let goes_up = !edge.to.is_empty() && layer(&edge.from) < layer(&edge.to);
    goes_up.then_some((&edge.from, &edge.to))
}

/// Returns the sets of modules that import each other, each in order.
fn cycles(edges: &BTreeSet<Edge>) -> Vec<Vec<String>> {
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for edge in edges.iter().filter(|edge| !edge.is_reexport) {
        imports.entry(&edge.from).or_default().insert(&edge.to);
    }
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for &from in imports.keys() {
        let of_this = reached.entry(from).or_default();
        let mut ahead = vec![from];
        while let Some(module) = ahead.pop() {
            let next = imports.get(module).into_iter().flatten();
            ahead.extend(next.copied().filter(|&next| of_this.insert(next)));
        }
    }
    let mut found = BTreeSet::new();
    for (module, others) in &reached {
        let is_mutual =
            |other: &&&str| reached.get(**other).is_some_and(|back| back.contains(module));
        let cycle: Vec<String> =
            others.iter().filter(is_mutual).map(|&other| other.to_owned()).collect();
        if !cycle.is_empty() {
            found.insert(cycle);
        }
    }
    found.into_iter().collect()
}

/// Returns the modules of the library. `added` is appended to the file of that name.
pub(crate) fn library(added: Option<(&str, &str)>) -> Modules {
    let folder = crate::tree::root().join("shizuku-kv/src");
    Modules::read(&|path| {
        let source = std::fs::read_to_string(folder.join(path)).ok()?;
        Some(source + added.filter(|(file, _)| *file == path).map_or("", |(_, line)| line))
    })
}

#[test]
fn upward_import_is_found() {
    let added = Some(("table.rs", "use crate::Live;"));
    let report = check(&library(added), UPWARD, CYCLES).unwrap_err();
    assert_eq!(report, "table imports live::value, which is in a higher layer\n");
}

#[test]
fn new_cycle_is_found() {
    let added = Some(("store/version.rs", "fn f() -> crate::store::WatchCursor { g() }"));
    let report = check(&library(added), UPWARD, CYCLES).unwrap_err();
    assert!(report.contains("  store::version imports store::cursor\n"), "{report}");
}

#[test]
fn recorded_exceptions_must_exist() {
    let modules = of_files(&[
        ("lib.rs", "mod store; mod live;"),
        ("store/mod.rs", "mod a; mod b; mod c;"),
        ("store/a.rs", "use super::b::B; pub struct A;"),
        ("store/b.rs", "use super::a::A; use crate::live::L; pub struct B;"),
        ("store/c.rs", ""),
        ("live.rs", "pub struct L;"),
    ]);
    let (upward, cycle) = (("store::b", "live"), ["store::a", "store::b"].as_slice());
    assert_eq!(check(&modules, &[upward], &[cycle]), Ok(()));
    for (recorded_upward, recorded_cycles, expected) in [
        (vec![], vec![cycle], "store::b imports live, which is in a higher layer\n"),
        (vec![upward], vec![], "import each other: [\"store::a\", \"store::b\"]\n"),
        (vec![upward, ("store::c", "live")], vec![cycle], "store::c imports live no longer"),
        (vec![upward], vec![&["store::a", "store::b", "store::c"][..]], "a cycle is smaller now"),
        (vec![upward], vec![cycle, &["store::c", "live"][..]], "is gone: remove it"),
    ] {
        let report = check(&modules, &recorded_upward, &recorded_cycles).unwrap_err();
        assert!(report.contains(expected), "{report}");
    }
}
