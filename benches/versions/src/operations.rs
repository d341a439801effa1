//! The operations of a store, one after the other, and of many keys at once.

use std::time::{Duration, Instant};

use crate::Arguments;
use crate::report::Case;
use crate::server::Server;
use crate::subject::{After, Before, Part, Subject};

/// Number of rounds and operations.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    singles: usize,
    many: usize,
    checkpoints: usize,
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
        self.0.fill(0..keys).await;
        self.1.fill(0..keys).await;
        self.2.fill(0..keys).await;
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
                case.add(&times);
            }
        }
        println!("measured: {}", case.line());
        case.line()
    }};
}

/// The median time of `count` operations one after the other.
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

const FULL: Effort = Effort { rounds: 20, singles: 200, many: 20_000, checkpoints: 10_000 };
const QUICK: Effort = Effort { rounds: 5, singles: 50, many: 5_000, checkpoints: 2_000 };

pub(crate) async fn measure(arguments: Arguments) {
    let server = Server::start();
    println!("nats-server {}\n", server.version);
    let nats = format!("nats://127.0.0.1:{}", server.port);
    let Effort { rounds, singles, many, checkpoints } = if arguments.quick { QUICK } else { FULL };
    let mut lines = Vec::new();
    macro_rules! measured {
        ($name:expr, $sides:expr, |$side:ident| $measured:expr) => {{
            let name = $name;
            if arguments.selects(&name) {
                lines.push(case!(rounds, name, $sides, |$side| $measured));
            }
        }};
    }
    for (backend, url) in [("memory", "memory:"), ("NATS", nats.as_str())] {
        let sides = Sides::open(url, "single", 1).await;
        sides.fill(100).await;
        let name = |what: &str| format!("{what}, {backend}");
        measured!(name("get"), sides, |side| singles!(singles, side.get().await));
        measured!(name("get of an absent key"), sides, |side| singles!(
            singles,
            side.get_absent().await
        ));
        measured!(name("put"), sides, |side| singles!(singles, side.put().await));
        measured!(name("compare-and-swap"), sides, |side| singles!(singles, side.swap().await));
        measured!(name("fenced put"), sides, |side| singles!(singles, side.fenced().await));
        measured!(name("typed read"), sides, |side| singles!(singles, side.read().await));
        measured!(name("typed write"), sides, |side| singles!(singles, side.write().await));
        measured!(name("write lock, acquire and release"), sides, |side| singles!(
            singles / 2,
            side.lock().await
        ));
        measured!(name("watch of one key, opened"), sides, |side| singles!(
            singles / 10,
            side.watch(&Part::key(7), 1).await
        ));
        for history in [1, 5] {
            let sides = Sides::open(url, &format!("many-{history}"), history).await;
            sides.fill(many).await;
            let name = |what: &str| format!("{what} of {many}, history {history}, {backend}");
            let part = Part::prefix("k.");
            measured!(name("put_many"), sides, |side| items!(many, side.fill(0..many).await));
            measured!(name("get_many"), sides, |side| items!(1000, side.get_many(1000).await));
            measured!(name("scan"), sides, |side| items!(many, side.scan(&part, many).await));
            measured!(name("keys"), sides, |side| items!(many, side.keys(&part, many).await));
            measured!(name("watch"), sides, |side| items!(many, side.watch(&part, many).await));
        }
    }
    let sides = Sides::open("memory:", "checkpoints", 1).await;
    measured!(
        "checkpoint of one entry, not synced, snapshot log".to_owned(),
        sides,
        |side| items!(checkpoints, side.checkpoints(checkpoints))
    );
    println!("\ncase | after | before | ratio | A/A | target | met");
    for line in lines {
        println!("{line}");
    }
}
