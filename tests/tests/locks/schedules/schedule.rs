//! One schedule: processes with workers, faults for a while, then a quiet time. In that time every
//! live process acquires a lock and no trace of the others remains.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::rw_lock::LockMode;
use shizuku_kv::{Connection, Store, StoreConfig, connect};
use shizuku_kv_tests::Random;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::guard::claim;
use crate::schedules::event_log::{EventLog, Who};
use crate::schedules::link::{Broken, Link, Rates, linked};
use crate::schedules::worker::{PATIENCE, RESOURCES, Seen, Worker};

/// The events of a schedule, or of many.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    seen: Seen,
    crashes: u64,
    cuts: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.count(other.seen);
        self.crashes += other.crashes;
        self.cuts += other.cuts;
    }

    fn count(&mut self, seen: Seen) {
        self.seen.granted += seen.granted;
        self.seen.lost += seen.lost;
        self.seen.rejected += seen.rejected;
        self.seen.left += seen.left;
    }

    /// A schedule in which nothing happens proves nothing.
    pub(crate) fn assert_that_enough_has_happened(&self, schedules: u64) {
        assert!(self.seen.granted > 8 * schedules, "too few locks were granted: {self}");
        if schedules >= 1000 {
            let least = self.seen.lost.min(self.seen.rejected).min(self.seen.left);
            assert!(
                least.min(self.crashes).min(self.cuts) > schedules / 10,
                "something hardly happened: {self}"
            );
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { granted, lost, rejected, left } = self.seen;
        write!(
            f,
            "{granted} locks granted, {lost} of them lost; {rejected} rejected, {left} not waited for; {} crashes, {} cuts",
            self.crashes, self.cuts
        )
    }
}

/// Runs a schedule on a runtime of its own, whose clock moves when all tasks are idle.
pub(crate) fn run(seed: u64, broken: Broken) -> Result<Tally, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(Schedule::run(seed, broken))
}

struct Process {
    number: u64,
    link: Arc<Link>,
    workers: Vec<AbortHandle>,
    healed_at: Option<Instant>,
}

struct Schedule {
    random: Random,
    seed: u64,
    store: Store,
    broken: Broken,
    rates: Rates,
    lease: Duration,
    deadline: Duration,
    event_log: EventLog,
    is_quiet: watch::Sender<bool>,
    processes: Vec<Process>,
    workers: JoinSet<Seen>,
    started: u64,
    tally: Tally,
}

impl Schedule {
    async fn run(seed: u64, broken: Broken) -> Result<Tally, String> {
        let mut random = Random::new(seed, "schedule");
        let connection = connect("memory:").await.expect("memory");
        let store = connection
            .store_with_config("locks", StoreConfig::new().history(5))
            .await
            .expect("a store");
        let often = [20, 60, 400][usize::try_from(random.below(3)).expect("an index")];
        let slowest = [2, 20, 120][usize::try_from(random.below(3)).expect("an index")];
        let rates = Rates { often, slowest };
        let mut schedule = Self {
            seed,
            store,
            broken,
            rates,
            lease: Duration::from_millis(1000 + 500 * random.below(3)),
            deadline: Duration::from_millis(500 + random.below(4500)),
            event_log: EventLog::new(),
            is_quiet: watch::Sender::new(false),
            processes: Vec::new(),
            workers: JoinSet::new(),
            started: 0,
            tally: Tally::default(),
            random,
        };
        for _ in 0..2 + schedule.random.below(2) {
            schedule.start_process();
        }
        schedule.disturb().await;
        schedule.end().await;
        match schedule.event_log.violation() {
            Some(violation) => Err(violation),
            None => Ok(schedule.tally),
        }
    }

    fn start_process(&mut self) {
        self.started += 1;
        let process = self.started;
        let random = Random::new(self.seed, &format!("link of process {process}"));
        let link = Link::new(random, self.rates);
        let store = linked(&self.store, &link, self.broken).with_deadline(self.deadline);
        let mut workers = Vec::new();
        for worker in 0..1 + self.random.below(2) {
            let who = Who { process, worker };
            let worker = Worker {
                random: Random::new(self.seed, &who.to_string()),
                who,
                store: store.clone(),
                lease: self.lease,
                event_log: self.event_log.clone(),
                is_quiet: self.is_quiet.subscribe(),
            };
            workers.push(self.workers.spawn(worker.run()));
        }
        self.event_log.note(format!("process {process} begins"));
        self.processes.push(Process { number: process, link, workers, healed_at: None });
    }

    /// Injects faults, and checks the guarantees at each step.
    async fn disturb(&mut self) {
        let end = Instant::now() + Duration::from_millis(1000 + self.random.below(3500));
        while Instant::now() < end {
            let step = self.random.below(60);
            sleep(Duration::from_millis(step)).await;
            self.event_log.check();
            self.heal(Instant::now());
            match self.random.below(40) {
                0..2 => self.cut(),
                2 if self.started < 7 => self.crash(),
                _ => {}
            }
        }
    }

    fn heal(&mut self, now: Instant) {
        for process in &mut self.processes {
            if process.healed_at.is_some_and(|at| at <= now) {
                process.healed_at = None;
                process.link.heal();
                self.event_log.note(format!("process {} is connected again", process.number));
            }
        }
    }

    fn any_process(&mut self) -> usize {
        usize::try_from(self.random.below(self.processes.len() as u64)).expect("an index")
    }

    /// Cuts off any process for any time, or a holder for longer than its lease.
    fn cut(&mut self) {
        let (mut index, mut length) = (self.any_process(), 50 + self.random.below(4000));
        if self.random.once_in(2)
            && let Some(holder) =
                self.processes.iter().position(|process| self.event_log.holds(process.number))
        {
            index = holder;
            length = self.lease.as_millis() as u64 + self.random.below(1500);
        }
        let length = Duration::from_millis(length);
        let process = &mut self.processes[index];
        process.link.cut();
        process.healed_at = Some(Instant::now() + length);
        self.event_log.note(format!("process {} is cut off for {length:?}", process.number));
        self.tally.cuts += 1;
    }

    /// The holds of its workers stay in the log, because no worker releases them.
    fn crash(&mut self) {
        let index = self.any_process();
        let process = self.processes.swap_remove(index);
        process.link.crash();
        process.workers.iter().for_each(AbortHandle::abort);
        self.event_log.note(format!("process {} crashes", process.number));
        self.tally.crashes += 1;
        self.start_process();
    }

    /// Every live process acquires a lock, and no claim remains in the record.
    async fn end(&mut self) {
        self.processes.iter().for_each(|process| process.link.calm());
        self.is_quiet.send_replace(true);
        self.event_log.note("quiet");
        let everybody = async {
            while let Some(ended) = self.workers.join_next().await {
                match ended {
                    Ok(seen) => self.tally.count(seen),
                    Err(failed) if failed.is_cancelled() => {}
                    Err(failed) => std::panic::resume_unwind(failed.into_panic()),
                }
                self.event_log.check();
            }
        };
        if timeout(4 * PATIENCE, everybody).await.is_err() {
            self.event_log.wrong("not all workers have come to an end".to_owned());
            return;
        }
        let store = linked(&self.store, &Link::sound(), self.broken);
        let store = store.with_deadline(Duration::from_secs(5));
        for resource in RESOURCES {
            self.bury(&store, resource).await;
        }
    }

    /// A final claim is not blocked for ever, and leaves nothing behind.
    async fn bury(&self, store: &Store, resource: &'static str) {
        let options = shizuku_kv::rw_lock::LockOptions::new().wait(PATIENCE);
        let lock = shizuku_kv::rw_lock::DistroRwLock::with_options(store, resource, options)
            .expect("a lock");
        match claim(&lock, LockMode::Write, true).await {
            Ok(guard) => {
                let who = Who { process: 0, worker: 0 };
                self.event_log.enter(who, resource, guard);
                if let Err(error) = self.event_log.leave(who).release().await {
                    self.event_log.wrong(format!("the last cannot release {resource}: {error}"));
                }
            }
            Err(error) => {
                let state = lock.inspect().await;
                self.event_log
                    .wrong(format!("the last does not get {resource}: {error}: {state:?}"));
                return;
            }
        }
        let state = lock.inspect().await.expect("a record");
        if !state.holders.is_empty() || !state.waiting.is_empty() {
            self.event_log.wrong(format!("a claim is left behind in {resource}: {state:?}"));
        }
    }
}
