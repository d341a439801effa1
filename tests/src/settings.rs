//! Settings of a test run, from its environment.

use std::env::var;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

/// Returns the number in an environment variable. Returns `None` if it is not set, or empty.
///
/// # Panics
///
/// If the text is not a number.
pub fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is not a number")))
}

/// Returns the seed in `SHIZUKU_SEED`, or a new one for each run, and prints it.
///
/// # Panics
///
/// If the text is not a number.
pub fn seed() -> u64 {
    let clock = || UNIX_EPOCH.elapsed().expect("a clock after 1970").subsec_nanos().into();
    let seed = number("SHIZUKU_SEED").unwrap_or_else(clock);
    println!("SHIZUKU_SEED={seed} makes the same decisions");
    seed
}

/// Returns whether the run may take minutes: `SHIZUKU_LONG=1`.
pub fn is_long() -> bool {
    var("SHIZUKU_LONG").is_ok_and(|long| long == "1")
}
