//! The inside of a process that acquires locks.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shizuku_kv::{Connection, Store, StoreConfig, connect};
use shizuku_kv_tests::Random;
use tokio::sync::watch;

use crate::faults::worker::Worker;
use crate::logs::line::Line;

pub(crate) const PLAN: &str = "SHIZUKU_LOCKS_PLAN";

/// The path of the test below.
pub(crate) const MODULE: &str = module_path!();

const WORKERS: u64 = 2;

/// The log. Each line is one write to the end of a file, so that a killed process leaves whole
/// lines.
#[derive(Clone, Debug)]
pub(crate) struct Diary(Arc<Mutex<File>>);

impl Diary {
    pub(crate) fn note(&self, at: u64, worker: u64, event: String) {
        let line = format!("{}\n", Line { at, worker, event });
        self.0.lock().unwrap().write_all(line.as_bytes()).expect("the log can be written");
    }
}

/// Waits for the end of faults, and ends this process when its parent ends, however that ends,
/// because the input then closes.
fn listen() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_ok_and(|line| line == "quiet") {
                sender.send_replace(true);
            }
        }
        std::process::exit(1);
    });
    receiver
}

#[test]
#[ignore = "the tests of locks start it as a process of its own; by itself it does nothing"]
fn a_process_that_wants_locks() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    let is_quiet = listen();
    let mut lines = plan.lines();
    let mut line = || lines.next().expect("a part of the plan").to_owned();
    let (url, bucket, log, number, seed) = (line(), line(), line(), line(), line());
    let [number, seed] = [number, seed].map(|number| number.parse::<u64>().expect("a number"));
    let log = OpenOptions::new().create(true).append(true).open(log).expect("a file");
    let diary = Diary(Arc::new(Mutex::new(log)));
    let mut random = Random::new(seed, "process");
    let mut runtime = match random.once_in(2) {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.worker_threads(2).enable_all().build().expect("a runtime").block_on(async {
        let store = store(&url, &bucket).await;
        let workers = (0..WORKERS).map(|worker| {
            let random = Random::new(seed, &format!("worker {worker}"));
            let worker = Worker::new(number, worker, &store, &diary, &is_quiet, random);
            tokio::spawn(worker.run())
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.expect("a worker comes to its end");
        }
    });
}

/// Opens the store, however long that takes.
async fn store(url: &str, bucket: &str) -> Store {
    loop {
        if let Ok(connection) = connect(url).await
            && let Ok(store) =
                connection.store_with_config(bucket, StoreConfig::new().must_exist()).await
        {
            return store;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
