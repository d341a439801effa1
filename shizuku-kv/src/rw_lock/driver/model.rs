//! Explores all schedules of callers, a background task, and wakes of the future that they poll.
//! Each decision is then replaced by a wrong one, which has to break a promise.
//!
//! A step is a section under the mutex of [`Driver`](super::Driver). A task that a section wakes is
//! notified in the same step: a later notification equals a task that polls later.

mod mutations;

use std::fmt;

use stateright::{Model, Property};

use super::turns::{Poller, TurnId, Turns};
use crate::exploration::{Found, explore};

const NO_LOSS: &str = "every wake leads to a poll";
const ANSWERED: &str = "every caller that polls gets its answer";
const ONE_POLL: &str = "one task polls at a time";
const BOUNDED: &str = "a caller that does not poll loses its turn at the second check";
const PROMPT: &str = "without a stuck caller, no wake and no answer waits for a check";
const PROMISES: [&str; 5] = [NO_LOSS, ANSWERED, ONE_POLL, BOUNDED, PROMPT];

/// The functions that the driver calls.
#[derive(Clone, Copy)]
struct Decisions {
    begin: fn(&mut Turns) -> TurnId,
    start_poll: fn(&mut Turns, Option<TurnId>) -> bool,
    end_poll: fn(&mut Turns, Option<TurnId>) -> Option<Poller>,
    wake: fn(&mut Turns) -> Option<Poller>,
    end: fn(&mut Turns, TurnId) -> Option<Poller>,
    wait: fn(&mut Turns) -> Option<Poller>,
    check: fn(&mut Turns) -> bool,
    /// A caller that loses its turn is woken.
    wakes_former: bool,
    /// The background task leaves its waker before it looks whether the turns are checked.
    registers_first: bool,
}

const PRODUCTION: Decisions = Decisions {
    begin: Turns::begin,
    start_poll: Turns::start_poll,
    end_poll: Turns::end_poll,
    wake: Turns::wake,
    end: Turns::end,
    wait: Turns::wait,
    check: Turns::check,
    wakes_former: true,
    registers_first: true,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The caller has sent nothing yet.
    New,
    /// The caller has sent its request, and polls at once.
    Begun,
    Waiting,
    /// The caller is neither polled nor dropped.
    Stuck,
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Caller {
    phase: Phase,
    turn: Option<TurnId>,
    /// Whether the task was woken since its last poll.
    is_woken: bool,
    /// Whether the channel of the answer has the waker of the task.
    awaits_channel: bool,
    is_answered: bool,
    /// Number of checks since the begin of the turn.
    checks: u8,
}

/// The progress of the background task in one poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Background {
    Waiting,
    Begun,
    /// It has looked whether the turns are checked.
    Looked,
}

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Task {
    Caller(usize),
    Background,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    turns: Turns,
    callers: Vec<Caller>,
    /// The caller whose waker the driver has.
    registered: Option<usize>,
    is_background_woken: bool,
    background: Background,
    /// Whether the driver has the waker of the background task.
    has_background: bool,
    is_check_armed: bool,
    polling: Option<Task>,
    /// Whether the running poll has seen everything that it will see.
    has_looked: bool,
    /// Number of events that no poll has seen.
    unseen: u8,
    /// Callers whose requests no poll has seen.
    requests: Vec<usize>,
    /// Callers whose requests were sent on. The next event answers them.
    sent: Vec<usize>,
    /// Events that can still happen.
    events: u8,
    /// Callers that can still get stuck.
    can_stick: u8,
    /// Whether two tasks have polled at the same time.
    has_collided: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    /// A timer or a message wakes the future.
    Event,
    Begin(usize),
    Poll(usize),
    BeginBackground,
    LookAtChecks,
    PollBackground,
    /// The time of a check has come.
    Check,
    Look,
    EndPoll,
    Stick(usize),
    Drop(usize),
}

#[derive(Clone, Copy)]
struct World {
    callers: usize,
    events: u8,
    sticks: u8,
    decisions: Decisions,
}

impl State {
    fn notify(&mut self, poller: Option<Poller>) {
        match poller {
            Some(Poller::Caller) => self.notify_registered(),
            Some(Poller::Background) => self.is_background_woken |= self.has_background,
            None => {}
        }
    }

    fn notify_registered(&mut self) {
        if let Some(caller) = self.registered {
            self.callers[caller].is_woken = true;
        }
    }

    fn lose_turn(&mut self, decisions: &Decisions) {
        if decisions.wakes_former {
            self.notify_registered();
        }
        self.registered = None;
    }

    fn start_poll(&mut self, task: Task, by: Option<TurnId>, decisions: &Decisions) -> bool {
        let starts = (decisions.start_poll)(&mut self.turns, by);
        if starts {
            self.has_collided |= self.polling.is_some();
            (self.polling, self.has_looked) = (Some(task), false);
        }
        starts
    }

    /// Polls the answer of a caller after the future.
    fn look_for_answer(&mut self, index: usize, decisions: &Decisions) {
        let turn = self.callers[index].turn;
        if self.callers[index].is_answered {
            return self.leave(index, decisions);
        }
        if let Some(turn) = turn {
            if self.turns.is_turn_of(turn) {
                let next = (decisions.wait)(&mut self.turns);
                return self.notify(next);
            }
            self.callers[index].turn = None;
        }
        self.callers[index].awaits_channel = true;
    }

    /// Ends a caller, which drops its turn.
    fn leave(&mut self, index: usize, decisions: &Decisions) {
        self.callers[index].phase = Phase::Over;
        if let Some(turn) = self.callers[index].turn.take()
            && self.turns.is_turn_of(turn)
        {
            self.registered = None;
            let next = (decisions.end)(&mut self.turns, turn);
            self.notify(next);
        }
    }

    /// Returns whether nothing happens any more by itself, except checks.
    fn is_quiet_until_check(&self) -> bool {
        let is_due = |caller: &Caller| match caller.phase {
            Phase::Begun => true,
            Phase::Waiting => caller.is_woken,
            Phase::New | Phase::Stuck | Phase::Over => false,
        };
        let is_background_due = self.is_background_woken || self.background != Background::Waiting;
        self.polling.is_none() && !is_background_due && !self.callers.iter().any(is_due)
    }

    fn is_quiet(&self) -> bool {
        self.is_quiet_until_check() && !self.is_check_armed
    }

    fn has_seen_all(&self) -> bool {
        self.unseen == 0 && self.requests.is_empty()
    }

    fn is_stuck(&self) -> bool {
        self.callers.iter().any(|caller| caller.phase == Phase::Stuck)
    }

    /// Returns whether a caller that is polled has not seen its answer.
    fn has_unseen_answer(&self) -> bool {
        let misses = |caller: &Caller| caller.phase == Phase::Waiting && caller.is_answered;
        self.callers.iter().any(misses)
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let caller = Caller {
            phase: Phase::New,
            turn: None,
            is_woken: false,
            awaits_channel: false,
            is_answered: false,
            checks: 0,
        };
        vec![State {
            turns: Turns::new(),
            callers: vec![caller; self.callers],
            registered: None,
            is_background_woken: true,
            background: Background::Waiting,
            has_background: false,
            is_check_armed: false,
            polling: None,
            has_looked: false,
            unseen: 1,
            requests: Vec::new(),
            sent: Vec::new(),
            events: self.events,
            can_stick: self.sticks,
            has_collided: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.events > 0 {
            actions.push(Action::Event);
        }
        for (index, caller) in state.callers.iter().enumerate() {
            let is_polling = state.polling == Some(Task::Caller(index));
            match caller.phase {
                Phase::New => actions.push(Action::Begin(index)),
                Phase::Begun => actions.push(Action::Poll(index)),
                Phase::Waiting if !is_polling => {
                    if caller.is_woken {
                        actions.push(Action::Poll(index));
                    }
                    actions.push(Action::Drop(index));
                    if state.can_stick > 0 {
                        actions.push(Action::Stick(index));
                    }
                }
                Phase::Stuck => actions.push(Action::Drop(index)),
                Phase::Waiting | Phase::Over => {}
            }
        }
        match state.background {
            Background::Waiting if state.polling == Some(Task::Background) => {}
            Background::Waiting => {
                if state.is_background_woken {
                    actions.push(Action::BeginBackground);
                }
                if state.is_check_armed {
                    actions.push(Action::Check);
                }
            }
            Background::Begun => actions.push(Action::LookAtChecks),
            Background::Looked => actions.push(Action::PollBackground),
        }
        if state.polling.is_some() {
            actions.push(if state.has_looked { Action::EndPoll } else { Action::Look });
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let decisions = &self.decisions;
        match action {
            Action::Event => {
                (next.events, next.unseen) = (next.events - 1, next.unseen + 1);
                let woken = (decisions.wake)(&mut next.turns);
                next.notify(woken);
            }
            Action::Begin(index) => {
                let turn = (decisions.begin)(&mut next.turns);
                next.lose_turn(decisions);
                (next.callers[index].phase, next.callers[index].turn) = (Phase::Begun, Some(turn));
                next.requests.push(index);
                let woken = (decisions.wake)(&mut next.turns);
                next.notify(woken);
            }
            Action::Poll(index) => {
                let caller = &mut next.callers[index];
                (caller.phase, caller.is_woken) = (Phase::Waiting, false);
                let turn = caller.turn;
                if turn.is_some_and(|turn| next.turns.is_turn_of(turn)) {
                    next.registered = Some(index);
                }
                let polls = turn.is_some() && next.start_poll(Task::Caller(index), turn, decisions);
                if !polls {
                    next.look_for_answer(index, decisions);
                }
            }
            Action::BeginBackground => {
                (next.is_background_woken, next.background) = (false, Background::Begun);
                next.has_background |= decisions.registers_first;
            }
            Action::LookAtChecks => {
                next.background = Background::Looked;
                next.is_check_armed = next.turns.is_checked();
            }
            Action::PollBackground => {
                (next.background, next.has_background) = (Background::Waiting, true);
                next.start_poll(Task::Background, None, decisions);
            }
            Action::Check => {
                let driving = next.callers.iter_mut().filter(|caller| caller.phase != Phase::Over);
                for caller in driving {
                    if caller.turn.is_some_and(|turn| state.turns.is_turn_of(turn)) {
                        caller.checks = caller.checks.saturating_add(1);
                    }
                }
                if (decisions.check)(&mut next.turns) {
                    next.lose_turn(decisions);
                }
                next.is_check_armed = next.turns.is_checked();
                next.start_poll(Task::Background, None, decisions);
            }
            Action::Look => {
                next.has_looked = true;
                if std::mem::take(&mut next.unseen) > 0 {
                    for index in std::mem::take(&mut next.sent) {
                        let caller = &mut next.callers[index];
                        caller.is_answered = true;
                        caller.is_woken |= caller.awaits_channel;
                    }
                }
                next.sent.append(&mut next.requests);
            }
            Action::EndPoll => {
                let task = next.polling.take()?;
                let by = match task {
                    Task::Caller(index) => next.callers[index].turn,
                    Task::Background => None,
                };
                let woken = (decisions.end_poll)(&mut next.turns, by);
                next.notify(woken);
                if let Task::Caller(index) = task {
                    next.look_for_answer(index, decisions);
                }
            }
            Action::Stick(index) => {
                next.can_stick -= 1;
                next.callers[index].phase = Phase::Stuck;
            }
            Action::Drop(index) => next.leave(index, decisions),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_LOSS, |_, state: &State| !state.is_quiet() || state.has_seen_all()),
            Property::always(ANSWERED, |_, state: &State| {
                !state.is_quiet() || !state.has_unseen_answer()
            }),
            Property::always(PROMPT, |_, state: &State| {
                let is_late = !state.has_seen_all() || state.has_unseen_answer();
                !state.is_quiet_until_check() || state.is_stuck() || !is_late
            }),
            Property::always(ONE_POLL, |_, state: &State| !state.has_collided),
            Property::always(BOUNDED, |_, state: &State| {
                state.callers.iter().all(|caller| caller.checks <= 2)
            }),
        ]
    }
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decisions")
    }
}

fn found(
    (callers, events, sticks): (usize, u8, u8),
    decisions: Decisions,
    until: Option<&'static str>,
) -> Found {
    explore([World { callers, events, sticks, decisions }], until)
}

#[test]
fn turns_keep_their_promises_in_every_schedule() {
    let more = std::env::var_os("SHIZUKU_LONG").map(|_| (3, 1, 1));
    for scenario in [(2, 2, 1)].into_iter().chain(more) {
        let found = found(scenario, PRODUCTION, None);
        println!("{scenario:?}: {} states", found.states);
        assert!(found.broken.is_empty(), "{:#?}", found.broken);
    }
}
