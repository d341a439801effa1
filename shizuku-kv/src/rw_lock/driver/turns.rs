//! Decides which task polls the future of a coordinator, and which task a wake reaches.
//!
//! Plain data: [`Driver`](super::Driver) calls it under a mutex, and `model.rs` explores it.

/// Identifies the turn of a caller.
pub(super) type TurnId = u64;

/// A task that can poll the future.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Poller {
    /// The caller whose turn it is.
    Caller,
    Background,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Turns {
    /// The caller that polls the future. Without one, the background task polls it.
    driving: Option<TurnId>,
    newest: TurnId,
    /// Whether a task is polling the future.
    is_polling: bool,
    /// Whether the future was woken since the start of its last poll.
    is_woken: bool,
    /// Whether the background task checks the turns at intervals.
    is_checked: bool,
    /// The turn at the last check.
    observed: Option<TurnId>,
    /// Whether the future has ended.
    is_over: bool,
}

impl Turns {
    /// The first poll needs no wake.
    pub(super) fn new() -> Self {
        Self {
            driving: None,
            newest: 0,
            is_polling: false,
            is_woken: true,
            is_checked: false,
            observed: None,
            is_over: false,
        }
    }

    /// Starts the turn of a caller, which then polls at once. A caller that loses its turn is
    /// woken, and from then on waits for its answer only.
    pub(super) fn begin(&mut self) -> TurnId {
        self.newest += 1;
        self.driving = Some(self.newest);
        self.newest
    }

    /// Returns whether a caller still has its turn.
    pub(super) fn is_turn_of(&self, turn: TurnId) -> bool {
        self.driving == Some(turn)
    }

    /// Returns whether a caller, or the background task, has to poll the future now.
    pub(super) fn start_poll(&mut self, by: Option<TurnId>) -> bool {
        let starts = self.is_woken && !self.is_polling && !self.is_over && self.driving == by;
        if starts {
            (self.is_polling, self.is_woken) = (true, false);
        }
        starts
    }

    /// Ends a poll. Returns the task to wake, because the future was woken meanwhile, or because
    /// the poll of another task may have answered the caller.
    pub(super) fn end_poll(&mut self, by: Option<TurnId>) -> Option<Poller> {
        self.is_polling = false;
        let is_of_another = self.driving.is_some() && self.driving != by;
        if is_of_another { Some(Poller::Caller) } else { self.woken_poller() }
    }

    /// Records that the future was woken. Returns the task to wake.
    pub(super) fn wake(&mut self) -> Option<Poller> {
        // A task that was woken before has not polled yet.
        let was_woken = std::mem::replace(&mut self.is_woken, true);
        if was_woken { None } else { self.woken_poller() }
    }

    /// Ends the turn of a caller. Returns the task to wake in its place.
    pub(super) fn end(&mut self, turn: TurnId) -> Option<Poller> {
        if !self.is_turn_of(turn) {
            return None;
        }
        self.driving = None;
        self.woken_poller()
    }

    /// Records that the caller whose turn it is waits, and may never poll again. Returns the task
    /// to wake, so that it begins to check the turns.
    pub(super) fn wait(&mut self) -> Option<Poller> {
        let begins = !self.is_checked && !self.is_over;
        if begins {
            (self.is_checked, self.observed) = (true, self.driving);
        }
        begins.then_some(Poller::Background)
    }

    /// Returns whether a check is due after some time.
    pub(super) fn is_checked(&self) -> bool {
        self.is_checked
    }

    /// Ends the turn of a caller that has lasted since the last check. The background task then
    /// polls if that caller has not consumed a wake. Returns whether to wake that caller, which
    /// from now on only awaits its answer.
    pub(super) fn check(&mut self) -> bool {
        let is_long = self.driving.is_some() && self.driving == self.observed;
        if is_long {
            self.driving = None;
        }
        self.observed = self.driving;
        self.is_checked = self.driving.is_some();
        is_long
    }

    pub(super) fn finish(&mut self) {
        (self.is_over, self.is_checked) = (true, false);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Returns the task that consumes a wake. The end of a running poll returns it later.
    fn woken_poller(&self) -> Option<Poller> {
        let is_due = self.is_woken && !self.is_polling && !self.is_over;
        is_due.then_some(if self.driving.is_some() { Poller::Caller } else { Poller::Background })
    }
}
