//! Work on another thread and back, with the primitives of the library and without the rest of it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Dropping it ends its threads.
pub(crate) struct Threads(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// `None` at the end.
    jobs: Mutex<Option<VecDeque<Job>>>,
    wakes: Condvar,
}

impl Threads {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        *shared.jobs.lock().unwrap() = Some(VecDeque::new());
        // As many as a connection has.
        for _ in 0..4 {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                while let Some(job) = shared.next() {
                    job();
                }
            });
        }
        Self(shared)
    }

    /// Does the work on another thread.
    pub(crate) async fn run(&self, work: impl FnOnce() + Send + 'static) {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            work();
            let _ = answer.send(());
        });
        self.0.jobs.lock().unwrap().as_mut().unwrap().push_back(job);
        self.0.wakes.notify_one();
        answered.await.unwrap();
    }
}

impl Shared {
    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap();
        loop {
            if let Some(job) = jobs.as_mut()?.pop_front() {
                return Some(job);
            }
            jobs = self.wakes.wait(jobs).unwrap();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        *self.0.jobs.lock().unwrap() = None;
        self.0.wakes.notify_all();
    }
}
