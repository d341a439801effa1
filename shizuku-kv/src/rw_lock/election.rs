//! Elections of one leader among many candidates. The leader is the writer of a lock, with a name.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_core::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::Instant;

use super::error::{DistroRwLockError, LockLoss, WithLockProcessError};
use super::guard::Hold;
use super::inspect::{LockState, since_of};
use super::lease;
use super::lease::EntryMeaning;
use super::lock::DistroRwLock;
use super::options::LockOptions;
use super::processor::{Processor, run};
use super::record::{ClaimId, Grant, LockMode};
use super::session::{is_later, key_of, lease_of, meaning_of};
use crate::store::{
    Deadline, FencingToken, Key, KvEntry, KvError, KvResult, Readers, Store, VersionToken,
    WatchScope,
};
use crate::watch::{Event, Follower};

/// Prefix of the keys of elections' records. It differs from that of locks, so that a lock may have
/// the same name.
const PREFIX: &str = "rw_lock_leader.";

/// Timeout for a leader whose session was never seen.
const UNSEEN_LEASE: Duration = Duration::from_secs(60);

/// An election, from the view of one candidate. This is a handle: it is cheap to create and to
/// clone.
///
#[cfg_attr(feature = "memory", doc = "```")]
#[cfg_attr(not(feature = "memory"), doc = "```text")]
/// use shizuku_kv::rw_lock::LeaderElection;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = shizuku_kv::connect("memory:").await?.store("app").await?;
/// let election = LeaderElection::new(&store, "scheduler", "node-1")?;
///
/// let leadership = election.campaign().await?;
/// assert!(leadership.is_leader());
/// assert_eq!(election.leader().await?.unwrap().candidate, "node-1");
/// leadership.resign().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LeaderElection {
    lock: DistroRwLock,
    candidate: Arc<str>,
}

/// The leader of an election, from [`LeaderElection::leader`] and [`LeaderElection::observe`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The candidate's name.
    pub candidate: String,
    /// The number of its term, larger than those of all earlier terms.
    pub token: FencingToken,
    /// Start of its term, by the clock of the process that granted it: the leader, or the process
    /// that released the lock before. `None` in a record of an earlier version.
    pub since: Option<SystemTime>,
}

impl LeaderElection {
    /// Creates the election `name` with the candidate `candidate` and the default
    /// [options](LockOptions). Sends nothing. The first 200 characters of the candidate's name are
    /// stored unencrypted. A process that only observes may use any name.
    ///
    /// # Errors
    /// As for [`DistroRwLock::new`].
    pub fn new(
        store: &Store,
        name: impl AsRef<str>,
        candidate: impl Into<String>,
    ) -> Result<Self, DistroRwLockError> {
        Self::with_options(store, name, candidate, LockOptions::new())
    }

    /// Creates the election `name`. The candidate's name replaces a label in the options.
    ///
    /// # Errors
    /// As for [`DistroRwLock::with_options`].
    pub fn with_options(
        store: &Store,
        name: impl AsRef<str>,
        candidate: impl Into<String>,
        options: LockOptions,
    ) -> Result<Self, DistroRwLockError> {
        let options = options.label(candidate);
        let candidate = options.label.as_deref().unwrap_or_default().into();
        let lock = DistroRwLock::under(PREFIX, store, name.as_ref(), options)?;
        Ok(Self { lock, candidate })
    }

    /// Waits to become the leader. Candidates are elected in the order in which they began to wait.
    ///
    /// Cancel safe: dropping the future ends the candidacy.
    ///
    /// # Errors
    /// As for [`DistroRwLock::write`]. Returns [`DistroRwLockError::Timeout`] if others led for all
    /// of [`LockOptions::wait`].
    pub async fn campaign(&self) -> Result<Leadership, DistroRwLockError> {
        Ok(self.leadership(self.lock.wait("campaign", LockMode::Write).await?))
    }

    /// Becomes the leader if no leader exists and no candidate waits.
    ///
    /// Cancel safe: dropping the future ends a term that may have begun.
    ///
    /// # Errors
    /// As for [`DistroRwLock::try_write`].
    pub async fn try_campaign(&self) -> Result<Leadership, DistroRwLockError> {
        Ok(self.leadership(self.lock.attempt("try_campaign", LockMode::Write).await?))
    }

    fn leadership(&self, hold: Hold) -> Leadership {
        Leadership { hold, candidate: Arc::clone(&self.candidate) }
    }

    /// Returns the current leader. Returns `None` if no leader exists, or if the leader is
    /// [presumed dead](super::LockClaim::presumed_dead). [`inspect`](Self::inspect) shows the
    /// latter too.
    ///
    /// Cancel safe: the call changes nothing.
    ///
    /// # Errors
    /// As for [`DistroRwLock::inspect`].
    pub async fn leader(&self) -> Result<Option<Leader>, DistroRwLockError> {
        let state = self.lock.inspect().await?;
        let holder = state.holders.into_iter().next().filter(|holder| !holder.claim.presumed_dead);
        Ok(holder.map(|holder| Leader {
            candidate: holder.claim.label.unwrap_or_default(),
            token: holder.token,
            since: holder.since,
        }))
    }

    /// Returns the leader and the waiting candidates, for operators.
    ///
    /// Cancel safe: the call changes nothing.
    ///
    /// # Errors
    /// As for [`DistroRwLock::inspect`].
    pub async fn inspect(&self) -> Result<LockState, DistroRwLockError> {
        self.lock.inspect().await
    }

    /// Ends the term of the current leader, which is notified. The returned token and the writes of
    /// the broken leader are as described for [`DistroRwLock::break_lock`].
    ///
    /// Cancel safe: after the future is dropped, the term may end or not.
    ///
    /// # Errors
    /// As for [`DistroRwLock::break_lock`].
    pub async fn break_term(&self) -> Result<FencingToken, DistroRwLockError> {
        self.lock.break_lock().await
    }

    /// Observes the leader: delivers the present one, and each change. Leaders that were replaced
    /// before the stream was polled may be skipped. The newest one is always delivered.
    ///
    /// A term also ends, as `None`, once the leader's session has ended or has not been renewed for
    /// its lease and an eighth. The time is counted on the monotonic clock of this process from
    /// when it saw the last renewal. An observer that is cut off from the store sees no renewals
    /// either. A leader that renews again is delivered again.
    ///
    /// Cancel safe: the call changes nothing.
    ///
    /// # Errors
    /// Returns [`DistroRwLockError::Store`] if the store cannot be watched now.
    pub async fn observe(&self) -> Result<Leaders, DistroRwLockError> {
        let scope = WatchScope::Key(self.lock.name.key.clone());
        let mut watch = Follower::shared(&self.lock.store, scope);
        if let Event::Lost(error) | Event::Closed(error) = watch.next().await {
            return Err(self.lock.name.store_error(error));
        }
        let election = self.clone();
        let observing = Observing {
            election,
            watch,
            term: None,
            delivered: None,
            foreign: None,
            is_over: false,
        };
        let leaders = stream::unfold(observing, |mut observing| async move {
            observing.next().await.map(|leader| (leader, observing))
        });
        Ok(Leaders(Readers::new(leaders.boxed())))
    }
}

impl Leader {
    fn of(grant: &Grant) -> Self {
        let candidate = grant.claim.label.clone().unwrap_or_default();
        Self { candidate, token: grant.token, since: since_of(grant) }
    }
}

/// The term of a leader. Dropping it resigns in the background.
#[derive(Debug)]
#[must_use = "dropping it resigns at once"]
pub struct Leadership {
    hold: Hold,
    candidate: Arc<str>,
}

impl Leadership {
    /// Returns whether this is the leader at this moment, by the clocks of this machine. Sends no
    /// request. It turns false before another candidate can be elected.
    pub fn is_leader(&self) -> bool {
        self.hold.loss().is_none()
    }

    /// Waits until the term is lost, and returns how. Never ends for a term that lasts until it is
    /// resigned.
    ///
    /// Cancel safe: dropping the future changes nothing.
    pub async fn lost(&self) -> LockLoss {
        self.hold.lost().await
    }

    /// Returns the number of the term. Pass it with each write of the leader: see
    /// [`Store::fenced`](crate::Store::fenced).
    pub fn fencing_token(&self) -> FencingToken {
        self.hold.token
    }

    /// Returns the candidate's name.
    pub fn candidate(&self) -> &str {
        &self.candidate
    }

    /// Ends the term. The next candidate becomes the leader a round trip later.
    ///
    /// Cancel safe: the term ends nevertheless.
    ///
    /// # Errors
    /// As for [`WriteGuard::release`](super::WriteGuard::release).
    pub async fn resign(self) -> Result<(), DistroRwLockError> {
        self.hold.release().await
    }
}

/// Stream of the leaders of an election, returned by [`LeaderElection::observe`]. It lives as long
/// as the store does.
///
/// After [`DistroRwLockError::ForeignRecord`], a value that is not a record of this version, it
/// continues with the next value. It ends after any other error.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Leaders(Readers<BoxStream<'static, Result<Option<Leader>, DistroRwLockError>>>);

impl Leaders {
    /// Returns the next leader, `Some(Ok(None))` if no leader exists. Returns `None` after the
    /// last.
    ///
    /// Cancel safe: no change is lost. Several tasks may call this method: each change goes to one
    /// of them.
    pub async fn next(&self) -> Option<Result<Option<Leader>, DistroRwLockError>> {
        self.0.next().await
    }
}

impl Stream for Leaders {
    type Item = Result<Option<Leader>, DistroRwLockError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_exclusive(cx)
    }
}

impl fmt::Debug for Leaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaders").finish_non_exhaustive()
    }
}

/// The state behind the stream of leaders.
struct Observing {
    election: LeaderElection,
    /// Follows the record.
    watch: Follower,
    /// The term of the newest record.
    term: Option<Term>,
    /// The leader that was delivered last.
    delivered: Option<Option<Leader>>,
    /// The last reported reason for a value that is not a record.
    foreign: Option<String>,
    is_over: bool,
}

impl Observing {
    async fn next(&mut self) -> Option<Result<Option<Leader>, DistroRwLockError>> {
        while !self.is_over {
            let Self { election, watch, term, .. } = self;
            let event = tokio::select! {
                biased;
                event = watch.next() => Ok(event),
                changed = of_term(term, &election.lock.store) => Err(changed),
            };
            let looked = match event {
                Err(changed) => changed.map_err(|error| self.election.lock.name.store_error(error)),
                Ok(Event::Update(update)) => self.record(update.into_entry().as_ref()),
                Ok(Event::CaughtUp { is_empty: true }) => self.record(None),
                Ok(Event::Opened | Event::CaughtUp { is_empty: false } | Event::LinkChanged) => {
                    continue;
                }
                // The store was recreated, or its upstream ended with another runtime.
                Ok(Event::Lost(error)) if error.is_resolved_by_reopening() => continue,
                Ok(Event::Lost(error) | Event::Closed(error)) => {
                    Err(self.election.lock.name.store_error(error))
                }
            };
            match looked {
                Ok(()) if self.foreign.is_some() => {}
                Ok(()) => {
                    let leader = self.term.as_ref().and_then(Term::leader);
                    if self.delivered.as_ref() != Some(&leader) {
                        self.delivered = Some(leader.clone());
                        return Some(Ok(leader));
                    }
                }
                Err(DistroRwLockError::ForeignRecord { key, reason }) => {
                    // The leader is unknown, and is delivered again once it is known.
                    (self.term, self.delivered) = (None, None);
                    if self.foreign.as_ref() != Some(&reason) {
                        self.foreign = Some(reason.clone());
                        return Some(Err(DistroRwLockError::ForeignRecord { key, reason }));
                    }
                }
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// Records the newest record of the election.
    fn record(&mut self, entry: Option<&KvEntry>) -> Result<(), DistroRwLockError> {
        let lock = &self.election.lock;
        let record = lock.record_of(entry.filter(|entry| !entry.is_tombstone()))?;
        self.foreign = None;
        let Some(grant) = record.holders.first() else {
            self.term = None;
            return Ok(());
        };
        let is_same = |term: &Term| (term.id, term.leader.token) == (grant.claim.id, grant.token);
        if !self.term.as_ref().is_some_and(is_same) {
            let term = Term::new(&lock.store, grant);
            self.term = Some(term.map_err(|error| lock.name.store_error(error))?);
        }
        Ok(())
    }
}

/// Waits until the known state of a term changes. Never ends if there is no term.
async fn of_term(term: &mut Option<Term>, store: &Store) -> KvResult<()> {
    match term {
        Some(term) => term.change(store).await,
        None => std::future::pending().await,
    }
}

/// The term of a leader, and the renewals of its session.
struct Term {
    leader: Leader,
    id: ClaimId,
    key: Key,
    /// Follows the session.
    watch: Follower,
    /// Version of the newest renewal that was seen, and its moment.
    version: Option<VersionToken>,
    seen: Instant,
    lease: Duration,
    /// Whether it has not renewed for so long that its lease is over.
    is_silent: bool,
    /// Whether its session has ended.
    is_gone: bool,
}

impl Term {
    fn new(store: &Store, grant: &Grant) -> Result<Self, KvError> {
        let id = grant.claim.id;
        let key = key_of(id.session)?;
        let watch = Follower::shared(store, WatchScope::Key(key.clone()));
        Ok(Self {
            leader: Leader::of(grant),
            id,
            key,
            watch,
            version: None,
            seen: Instant::now(),
            lease: UNSEEN_LEASE,
            is_silent: false,
            is_gone: false,
        })
    }

    fn leader(&self) -> Option<Leader> {
        (!self.is_silent && !self.is_gone).then(|| self.leader.clone())
    }

    /// Waits until the leader's session changes, or until it was silent for too long. Returns the
    /// error if this user may not watch the session.
    ///
    /// Cancel safe: no event is lost.
    async fn change(&mut self, store: &Store) -> KvResult<()> {
        let end = self.seen + lease::patience(self.lease);
        let event = tokio::select! {
            biased;
            event = self.watch.next() => event,
            () = tokio::time::sleep_until(end), if !self.is_silent => {
                // Updates that arrived while this process did not run may still be in flight here.
                let store = store.with_deadline((self.lease / 3).min(Deadline::DEFAULT));
                if let Ok(Some(entry)) = store.leader_entry(&self.key).await {
                    self.record(&entry);
                }
                self.is_silent = lease::is_silent(self.seen.elapsed(), self.lease);
                return Ok(());
            }
        };
        match event {
            Event::CaughtUp { is_empty } => self.is_gone |= is_empty,
            Event::Update(update) => {
                if let Some(entry) = update.into_entry() {
                    self.record(&entry);
                }
            }
            Event::Lost(error @ KvError::Unauthorized { .. }) => return Err(error),
            Event::Opened | Event::LinkChanged | Event::Lost(_) | Event::Closed(_) => {}
        }
        Ok(())
    }

    fn record(&mut self, entry: &KvEntry) {
        let meaning = meaning_of(self.id.session, entry);
        let is_known = self.version.is_some_and(|known| !is_later(entry.version, known));
        if is_known || meaning == EntryMeaning::Older {
            return;
        }
        (self.version, self.seen) = (Some(entry.version), Instant::now());
        (self.is_silent, self.is_gone) = (false, meaning == EntryMeaning::Ended);
        if !self.is_gone {
            self.lease = lease_of(entry);
        }
    }
}

/// Work that only a leader does, for as long as it leads.
pub struct LeaderGuardProcessor<P, L> {
    processor: Arc<P>,
    leadership: L,
    ends_when_lost: bool,
}

impl<P, L: Borrow<Leadership>> LeaderGuardProcessor<P, L> {
    /// Creates work of a leader; `leadership` is owned, borrowed or in an `Arc`.
    pub fn new(processor: Arc<P>, leadership: L) -> Self {
        Self { processor, leadership, ends_when_lost: false }
    }

    /// Drops the work when the term is lost, instead of letting it continue to its end.
    #[must_use]
    pub fn ends_when_lost(mut self) -> Self {
        self.ends_when_lost = true;
        self
    }

    /// Runs the work, if this is the leader.
    ///
    /// Cancel safe: dropping the future drops the work.
    ///
    /// # Errors
    /// Returns [`WithLockProcessError::Lock`] if the term was over before, and the work was not
    /// begun. Returns [`WithLockProcessError::LeaseLost`] if the term was lost during the work.
    /// Returns [`WithLockProcessError::Process`] if the work fails, with its error.
    pub async fn process<I>(&self, input: I) -> Result<P::Output, WithLockProcessError<P::Error>>
    where
        P: Processor<I>,
    {
        let hold = &self.leadership.borrow().hold;
        if let Some(reason) = hold.loss() {
            return Err(hold.name.lost_error(reason).into());
        }
        run(hold, self.ends_when_lost, self.processor.process(input)).await
    }
}

impl<I, P, L> Processor<I> for LeaderGuardProcessor<P, L>
where
    I: Send,
    P: Processor<I, Output: Send, Error: Send> + Send + Sync,
    L: Borrow<Leadership> + Sync,
{
    type Output = P::Output;
    type Error = WithLockProcessError<P::Error>;

    fn process(&self, input: I) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send {
        LeaderGuardProcessor::process(self, input)
    }
}

impl<P, L: Borrow<Leadership>> fmt::Debug for LeaderGuardProcessor<P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderGuardProcessor")
            .field("leadership", self.leadership.borrow())
            .finish_non_exhaustive()
    }
}
