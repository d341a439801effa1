//! Wrong decisions, each of which has to break a promise.

use super::super::turns::Poller;
use super::{ANSWERED, BOUNDED, Decisions, NO_LOSS, ONE_POLL, PRODUCTION, PROMISES, PROMPT, found};
use crate::exploration::{self, assert_each_breaks};

type Mutation = exploration::Mutation<Decisions, (usize, u8, u8)>;

#[test]
fn mutation_of_each_decision_breaks_a_promise() {
    let all = |name, breaks, decisions| Mutation { name, decisions, scenario: (2, 2, 1), breaks };
    let mutations = vec![
        all(
            "a wake during a poll is forgotten",
            NO_LOSS,
            Decisions {
                end_poll: |turns, by| {
                    turns.end_poll(by);
                    None
                },
                ..PRODUCTION
            },
        ),
        all(
            "the poll of another task wakes no caller",
            PROMPT,
            Decisions {
                end_poll: |turns, by| {
                    let next = turns.end_poll(by);
                    let is_own = by.is_some_and(|turn| turns.is_turn_of(turn));
                    next.filter(|next| is_own || *next == Poller::Background)
                },
                ..PRODUCTION
            },
        ),
        all(
            "a wake wakes no task",
            NO_LOSS,
            Decisions {
                wake: |turns| {
                    turns.wake();
                    None
                },
                ..PRODUCTION
            },
        ),
        all(
            "a wake reaches the background task only",
            PROMPT,
            Decisions { wake: |turns| turns.wake().map(|_| Poller::Background), ..PRODUCTION },
        ),
        all(
            "the end of a turn wakes no task",
            NO_LOSS,
            Decisions {
                end: |turns, turn| {
                    turns.end(turn);
                    None
                },
                ..PRODUCTION
            },
        ),
        all("waiting callers are not checked", NO_LOSS, Decisions { wait: |_| None, ..PRODUCTION }),
        all("checks end no turn", BOUNDED, Decisions { check: |_| false, ..PRODUCTION }),
        all(
            "a caller that loses its turn is not woken",
            ANSWERED,
            Decisions { wakes_former: false, ..PRODUCTION },
        ),
        all(
            "the background task looks at the checks before it can be woken",
            NO_LOSS,
            Decisions { registers_first: false, ..PRODUCTION },
        ),
        all(
            "a task polls while another does",
            ONE_POLL,
            Decisions {
                start_poll: |turns, by| {
                    let mut other = turns.clone();
                    let _ = other.end_poll(None);
                    let starts = other.start_poll(by);
                    if starts {
                        *turns = other;
                    }
                    starts
                },
                ..PRODUCTION
            },
        ),
    ];
    assert_each_breaks(mutations, PROMISES, |scenario, decisions, until| {
        found(scenario, decisions, Some(until))
    });
}
