//! The cost of work: its duration, and the CPU time of client and server apart.

use std::ops::Div;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::Server;

/// Ticks a second of the times in `/proc`, the same on every Linux machine.
const TICKS: u64 = 100;

/// A part of a cost.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Side {
    Wall,
    Client,
    Server,
}

/// The cost of work.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// CPU time of this process, all of its threads.
    client: Duration,
    /// CPU time of the server, in steps of 10 ms. Zero if the system does not report it.
    server: Duration,
}

impl Cost {
    /// Measures the cost of work. No other work runs in this process or on the server meanwhile.
    pub(crate) async fn of(server: &Server, work: impl Future<Output = ()>) -> Self {
        let (start, client, of_server) = (Instant::now(), own_time(), time_of(server.pid()));
        work.await;
        Self {
            wall: start.elapsed(),
            client: own_time() - client,
            server: time_of(server.pid()).saturating_sub(of_server),
        }
    }

    pub(crate) fn of_side(self, side: Side) -> Duration {
        match side {
            Side::Wall => self.wall,
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }
}

impl Div<u32> for Cost {
    type Output = Self;

    fn div(self, count: u32) -> Self {
        Self { wall: self.wall / count, client: self.client / count, server: self.server / count }
    }
}

fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("a time after the start of the process")
}

/// Returns the CPU time of a process.
fn time_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may contain spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}
