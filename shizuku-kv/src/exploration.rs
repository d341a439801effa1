//! Exploration for the models of locks and replicas. stateright explores the states of a world.
//! Each wrong decision has to break a promise. Otherwise the model would not check the decision.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// Results of exploring some worlds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) states: usize,
    /// The required situations that were reached.
    pub(crate) reached: BTreeSet<&'static str>,
    /// The broken promises, each with the actions that lead there.
    pub(crate) broken: BTreeMap<&'static str, String>,
}

/// Explores the states, up to the first one in which this promise is broken. Without a named
/// promise, any broken promise ends the search.
pub(crate) fn explore<M>(worlds: impl IntoIterator<Item = M>, until: Option<&'static str>) -> Found
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let mut found = Found::default();
    for world in worlds {
        let finish = match until {
            Some(promise) => HasDiscoveries::AnyOf(BTreeSet::from([promise])),
            None => HasDiscoveries::AnyFailures,
        };
        let checker = world.checker().threads(2).finish_when(finish).spawn_bfs().join();
        found.states += checker.unique_state_count();
        for (name, path) in checker.discoveries() {
            match checker.model().property(name).expectation {
                Expectation::Sometimes => drop(found.reached.insert(name)),
                _ => drop(found.broken.insert(name, format!("{:?}", path.into_actions()))),
            }
        }
        if !found.broken.is_empty() {
            break;
        }
    }
    found
}

/// A wrong decision.
pub(crate) struct Mutation<D, S> {
    pub(crate) name: &'static str,
    pub(crate) decisions: D,
    /// The scenario in which the decision breaks a promise.
    pub(crate) scenario: S,
    /// The promise that the decision breaks in this scenario.
    pub(crate) breaks: &'static str,
}

/// Checks that each mutation breaks its promise, and that each promise has such a mutation.
pub(crate) fn assert_each_breaks<D, S: Copy + Debug>(
    mutations: Vec<Mutation<D, S>>,
    promises: impl IntoIterator<Item = &'static str>,
    explore: impl Fn(S, D, &'static str) -> Found,
) {
    let mut promises = BTreeSet::from_iter(promises);
    let mut missed = Vec::new();
    for Mutation { name, decisions, scenario, breaks } in mutations {
        let found = explore(scenario, decisions, breaks);
        println!("{name}: broken after {} states", found.states);
        if !found.broken.contains_key(breaks) {
            missed.push(format!("{name}, in {scenario:?}, breaks only {:#?}", found.broken));
        }
        promises.remove(breaks);
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    assert!(promises.is_empty(), "nothing breaks {promises:?}");
}
