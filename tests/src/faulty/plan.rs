//! A hook with rules that a test adds, and the faults that its rules apply.

use std::collections::BTreeMap;
use std::fmt;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use shizuku_kv::{KvError, KvResult};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Answer, Call, FaultyStore, Hook, Next};

/// Faults for selected calls. Rules can be added while the store is in use. A plan also counts
/// calls.
///
/// A connection with a plan applies the plan to its stores.
#[derive(Debug, Default)]
pub struct Plan {
    rules: Mutex<Vec<Rule>>,
    calls: Mutex<BTreeMap<&'static str, usize>>,
}

impl Plan {
    /// Adds a rule. If several rules apply to a call, the oldest one decides.
    pub fn add(&self, on: On, fault: Fault) {
        lock(&self.rules).push(Rule { on, fault });
    }

    /// Removes all rules.
    pub fn clear(&self) {
        lock(&self.rules).clear();
    }

    /// Returns the number of calls of this name, whatever their outcome.
    pub fn calls(&self, name: &str) -> usize {
        lock(&self.calls).get(name).copied().unwrap_or(0)
    }

    /// Returns the number of all calls.
    pub fn all_calls(&self) -> usize {
        lock(&self.calls).values().sum()
    }

    /// Returns whether every rule for a limited number of calls has been applied to all of them. A
    /// test whose rules were not applied proves nothing.
    pub fn is_over(&self) -> bool {
        lock(&self.rules).iter().all(|rule| matches!(rule.on.times, None | Some(0)))
    }

    fn fault_of(&self, call: &Call) -> Option<Fault> {
        *lock(&self.calls).entry(call.operation.name()).or_default() += 1;
        lock(&self.rules).iter_mut().find_map(|rule| rule.next(call))
    }
}

impl Hook for Plan {
    async fn call(self: &Arc<Self>, call: Call, next: &Next) -> KvResult<Answer> {
        let answer = match self.fault_of(&call) {
            Some(fault) => fault.apply(call, next).await?,
            None => next.call(call).await?,
        };
        Ok(match answer {
            Answer::Store(store) => FaultyStore::over(&store, self).into(),
            answer => answer,
        })
    }
}

#[derive(Debug)]
struct Rule {
    on: On,
    fault: Fault,
}

impl Rule {
    /// Returns the fault of this call. Returns `None` if the rule does not apply to it.
    fn next(&mut self, call: &Call) -> Option<Fault> {
        let On { matches, skipped, times } = &mut self.on;
        if !matches(call) {
            return None;
        }
        if *skipped > 0 {
            *skipped -= 1;
            return None;
        }
        if let Some(times) = times {
            *times = times.checked_sub(1)?;
        }
        Some(self.fault.clone())
    }
}

/// The calls to which a rule applies: all that match, unless their number is limited.
pub struct On {
    matches: Box<dyn Fn(&Call) -> bool + Send + Sync>,
    skipped: usize,
    times: Option<usize>,
}

impl On {
    /// Selects the calls for which `matches` returns true.
    pub fn matching(matches: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Self {
        Self { matches: Box::new(matches), skipped: 0, times: None }
    }

    /// Selects the calls of this name, as in [`Operation::name`](super::Operation::name).
    pub fn call(name: &'static str) -> Self {
        Self::matching(move |call| call.operation.name() == name)
    }

    /// Selects only calls with this key.
    #[must_use]
    pub fn key(self, key: impl Into<String>) -> Self {
        let (key, matches) = (key.into(), self.matches);
        let has_key =
            move |call: &Call| call.operation.key().is_some_and(|found| *found == key.as_str());
        Self { matches: Box::new(move |call| matches(call) && has_key(call)), ..self }
    }

    /// Skips this number of matching calls first.
    #[must_use]
    pub fn after(self, calls: usize) -> Self {
        Self { skipped: calls, ..self }
    }

    /// Limits the number of calls.
    #[must_use]
    pub fn times(self, calls: usize) -> Self {
        Self { times: Some(calls), ..self }
    }
}

impl fmt::Debug for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("On")
            .field("skipped", &self.skipped)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

type Apply = dyn Fn(Call, Next) -> BoxFuture<'static, KvResult<Answer>> + Send + Sync;

/// A change of the effect or the answer of one call.
#[derive(Clone)]
pub struct Fault(Arc<Apply>);

impl Fault {
    /// Returns a fault by which `apply` answers the call instead of the wrapped store.
    pub fn new<F>(apply: impl Fn(Call, Next) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = KvResult<Answer>> + Send + 'static,
    {
        Self(Arc::new(move |call, next| apply(call, next).boxed()))
    }

    /// Returns a fault by which the call has no effect, and this error.
    pub fn fail(error: KvError) -> Self {
        Self::new(move |_, _| ready(Err(error.clone())))
    }

    /// Returns a fault by which the call has no effect, and this answer.
    pub fn answer(answer: impl Fn(&Call) -> KvResult<Answer> + Send + Sync + 'static) -> Self {
        Self::new(move |call, _| ready(answer(&call)))
    }

    /// Returns a fault by which the call panics.
    pub fn panic(message: &'static str) -> Self {
        Self::new(move |_, _| async move { panic!("{message}") })
    }

    /// Returns a fault by which the call reaches the store after this time. After its deadline, the
    /// call has no effect.
    pub fn delay(by: Duration) -> Self {
        Self::new(move |call, next| async move {
            let (name, deadline) = (call.operation.name(), call.deadline);
            if by >= deadline.remaining() {
                sleep(deadline.remaining()).await;
                return Err(deadline.timeout(name, call.operation.key()));
            }
            sleep(by).await;
            next.call(call).await
        })
    }

    /// Returns a fault by which the call takes effect, and is answered after this time. After the
    /// deadline of the call, the answer is lost.
    pub fn delay_answer(by: Duration) -> Self {
        Self::new(move |call, next| async move {
            let answer = next.call(call.clone()).await;
            let remaining = call.deadline.remaining();
            sleep(by.min(remaining)).await;
            if by < remaining { answer } else { call.lost() }
        })
    }

    /// Returns a fault by which the call waits until the gate is open.
    pub fn hold(gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::new(move |call, next| {
            let gate = gate.clone();
            async move {
                gate.passed().await;
                next.call(call).await
            }
        })
    }

    /// Returns a fault by which the call has no effect. After this time, or at the deadline, its
    /// outcome is [lost](Call::lost).
    pub fn lose_request(after: Duration) -> Self {
        Self::new(move |call, _| async move {
            sleep(after.min(call.deadline.remaining())).await;
            call.lost()
        })
    }

    /// Returns a fault by which the call takes effect. After this time, or at the deadline, its
    /// outcome is [lost](Call::lost). An error of the call is returned at once.
    pub fn lose_answer(after: Duration) -> Self {
        Self::new(move |call, next| async move {
            drop(next.call(call.clone()).await?);
            sleep(after.min(call.deadline.remaining())).await;
            call.lost()
        })
    }

    /// Returns a fault by which the store receives another call.
    pub fn rewrite(with: impl Fn(Call) -> Call + Send + Sync + 'static) -> Self {
        Self::new(move |call, next| {
            let call = with(call);
            async move { next.call(call).await }
        })
    }

    /// Returns a fault by which the caller receives another answer. [`Answer::map_entries`] and
    /// [`Answer::map_updates`] change the deliveries of scans and watches.
    pub fn change(with: impl Fn(Answer) -> Answer + Send + Sync + 'static) -> Self {
        let with = Arc::new(with);
        Self::new(move |call, next| {
            let with = Arc::clone(&with);
            async move { next.call(call).await.map(|answer| with(answer)) }
        })
    }

    /// Answers a call.
    ///
    /// # Errors
    /// Returns the error for the caller.
    pub async fn apply(&self, call: Call, next: &Next) -> KvResult<Answer> {
        (self.0)(call, next.clone()).await
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").finish_non_exhaustive()
    }
}

/// A gate for [held](Fault::hold) calls, which is closed at first.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    /// Lets waiting calls continue, and later ones pass.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Makes later calls wait.
    pub fn close(&self) {
        self.0.send_replace(false);
    }

    /// Waits until the gate is open.
    pub async fn passed(&self) {
        // Cannot fail, because `self` has the sender.
        let _ = self.0.subscribe().wait_for(|is_open| *is_open).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
