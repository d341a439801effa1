//! The time from the start of a put until a watch of another process has it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shizuku_kv::{WatchScope, connect};

use crate::support::{met, middle};

/// Environment variable of the process that writes: the URL.
const WRITER: &str = "SHIZUKU_FOLDERS_WRITER";

/// Number of puts that are measured.
const PUTS: usize = 400;

/// Maximum time at p99.
const LONGEST: Duration = Duration::from_millis(50);

fn nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// Puts the time again and again. Returns the duration of a put at p50 in nanoseconds.
pub(crate) async fn child() -> Option<String> {
    let url = std::env::var(WRITER).ok()?;
    let store = connect(&url).await.unwrap().store("config").await.unwrap();
    let mut times = Vec::new();
    for _ in 0..PUTS + 100 {
        let began = Instant::now();
        store.put("time", nanos().to_string()).await.unwrap();
        times.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Some(middle(times).as_nanos().to_string())
}

pub(crate) async fn measure() -> Vec<String> {
    let mut lines = one("default", "", "?read_only=true").await;
    lines.extend(one("shared", "?shared=true", "?shared=true").await);
    lines
}

async fn one(name: &str, writer: &str, reader: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let url = |options: &str| format!("file:{}/data{options}", folder.path().display());
    // Creates the store, which a reader cannot do.
    let connection = connect(&url(writer)).await.unwrap();
    connection.store("config").await.unwrap().put("time", nanos().to_string()).await.unwrap();
    connection.shutdown().await.unwrap();
    let store = connect(&url(reader)).await.unwrap().store("config").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .env(WRITER, url(writer))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut times = Vec::new();
    // The first entry is older than the child.
    while times.len() <= PUTS {
        if let Some(entry) = watch.next().await.unwrap().unwrap().into_entry() {
            let began: u64 = String::from_utf8_lossy(&entry.value).parse().unwrap();
            times.push(Duration::from_nanos(nanos().saturating_sub(began)));
        }
    }
    times.remove(0);
    times.sort_unstable();
    let output = child.wait_with_output().unwrap();
    let put: u64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    [("p50", "three puts", half, 3 * Duration::from_nanos(put)), ("p99", "50 ms", most, LONGEST)]
        .map(|(rank, limit, ours, other)| {
            let ratio = ours.as_secs_f64() / other.as_secs_f64();
            let case = format!("put to a watch of another process, {name}, {rank}; {limit}");
            let verdict = met(ratio <= 1.0);
            let line = format!("{case} | {ours:.2?} | {other:.2?} | {ratio:.2} | <= 1 | {verdict}");
            println!("measured: {line}");
            line
        })
        .into()
}
