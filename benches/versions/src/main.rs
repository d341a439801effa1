//! Compares the library with an earlier version of itself; see `run` in this directory.

mod report;
#[path = "../../../shizuku-kv/benches/support/server.rs"]
mod server;
mod subject;

use std::time::{Duration, Instant};

use report::Case;
use server::Server;
use subject::{After, Before, Subject};

/// Number of rounds and operations.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    singles: usize,
    many: usize,
}

/// The three sides of a case: the present version, the earlier one, the present one again.
struct Sides(After, Before, After);

impl Sides {
    async fn open(url: &str, name: &str, history: u8) -> Self {
        Self(
            After::open(url, &format!("{name}-1"), history).await,
            Before::open(url, &format!("{name}-2"), history).await,
            After::open(url, &format!("{name}-3"), history).await,
        )
    }

    async fn fill(&self, keys: usize) {
        self.0.fill(keys).await;
        self.1.fill(keys).await;
        self.2.fill(keys).await;
    }
}

/// Measures one expression on all sides, in another order each round. The first round is not
/// counted.
macro_rules! case {
    ($rounds:expr, $name:expr, $sides:expr, |$side:ident| $measured:expr) => {{
        let mut case = Case::new($name);
        for round in 0..=$rounds {
            let mut times = [Duration::ZERO; 3];
            for turn in 0..3 {
                let at = (round + turn) % 3;
                times[at] = match at {
                    0 => {
                        let $side = &$sides.0;
                        $measured
                    }
                    1 => {
                        let $side = &$sides.1;
                        $measured
                    }
                    _ => {
                        let $side = &$sides.2;
                        $measured
                    }
                };
            }
            if round > 0 {
                case.add(times);
            }
        }
        println!("measured: {}", case.line());
        case.line()
    }};
}

/// The median of `count` operations one after the other.
macro_rules! singles {
    ($count:expr, $operation:expr) => {{
        let mut times = Vec::with_capacity($count);
        for _ in 0..$count {
            let start = Instant::now();
            $operation;
            times.push(start.elapsed());
        }
        times.sort();
        times[times.len() / 2]
    }};
}

/// The total time divided by the number of items.
macro_rules! items {
    ($count:expr, $operation:expr) => {{
        let start = Instant::now();
        $operation;
        start.elapsed() / u32::try_from($count).expect("a small number")
    }};
}

#[tokio::main]
async fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let effort = if quick {
        Effort { rounds: 5, singles: 50, many: 5_000 }
    } else {
        Effort { rounds: 20, singles: 200, many: 20_000 }
    };
    // A task of its own, because services run in tasks.
    tokio::spawn(measure(effort)).await.expect("the benchmark");
}

async fn measure(effort: Effort) {
    let server = Server::start();
    println!("nats-server {}\n", server.version);
    let nats = format!("nats://127.0.0.1:{}", server.port);
    let Effort { rounds, singles, many } = effort;
    let mut lines = Vec::new();
    for (backend, url) in [("memory", "memory:"), ("NATS", nats.as_str())] {
        let sides = Sides::open(url, "single", 1).await;
        sides.fill(100).await;
        let name = |what: &str| format!("{what}, {backend}");
        lines.push(case!(rounds, name("get"), sides, |side| singles!(singles, side.get().await)));
        lines.push(case!(rounds, name("get of an absent key"), sides, |side| singles!(
            singles,
            side.get_absent().await
        )));
        lines.push(case!(rounds, name("put"), sides, |side| singles!(singles, side.put().await)));
        lines.push(case!(rounds, name("compare-and-swap"), sides, |side| singles!(
            singles,
            side.swap().await
        )));
        lines.push(case!(rounds, name("fenced put"), sides, |side| singles!(singles, side.fenced().await)));
        lines.push(case!(rounds, name("typed read"), sides, |side| singles!(singles, side.read().await)));
        lines.push(case!(rounds, name("typed write"), sides, |side| singles!(singles, side.write().await)));
        lines.push(case!(rounds, name("write lock, acquire and release"), sides, |side| singles!(
            singles / 2,
            side.lock().await
        )));
        lines.push(case!(rounds, name("watch of one key, opened"), sides, |side| singles!(
            singles / 10,
            side.watch_one().await
        )));
        for history in [1, 5] {
            let sides = Sides::open(url, &format!("many-{history}"), history).await;
            sides.fill(many).await;
            let name = |what: &str| format!("{what} of {many}, history {history}, {backend}");
            lines.push(case!(rounds, name("put_many"), sides, |side| items!(many, side.fill(many).await)));
            lines
                .push(case!(rounds, name("get_many"), sides, |side| items!(1000, side.get_many(1000).await)));
            lines.push(case!(rounds, name("scan"), sides, |side| items!(many, side.scan(many).await)));
            lines.push(case!(rounds, name("keys"), sides, |side| items!(many, side.keys(many).await)));
            lines.push(case!(rounds, name("watch"), sides, |side| items!(many, side.watch(many).await)));
        }
    }
    println!("\ncase | after | before | ratio | A/A | target | met");
    for line in lines {
        println!("{line}");
    }
}
