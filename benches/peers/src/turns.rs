//! Several sides that do the same take turns, so that a temporary slowdown of the machine affects
//! all of them.

use std::time::Duration;

use futures_util::future::BoxFuture;

/// The work of one side in a round. It returns its time itself, so that preparation and cleanup do
/// not count.
pub(crate) struct Side<'a>(Box<dyn FnMut() -> BoxFuture<'a, Duration> + Send + 'a>);

impl<'a> Side<'a> {
    pub(crate) fn new<F>(mut once: impl FnMut() -> F + Send + 'a) -> Self
    where
        F: Future<Output = Duration> + Send + 'a,
    {
        Self(Box::new(move || Box::pin(once())))
    }
}

/// The times of one side in seconds, one per round.
pub(crate) type Times = Vec<f64>;

/// Lets the sides take turns. Each round begins with another side. The first round is not counted.
pub(crate) async fn take_turns<const N: usize>(
    rounds: usize,
    mut sides: [Side<'_>; N],
) -> [Times; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for turn in 0..N {
            let side = (round + turn) % N;
            let time = (sides[side].0)().await;
            if round > 0 {
                times[side].push(time.as_secs_f64());
            }
        }
    }
    times
}
