//! Runs the fuzz targets for a moment, without the nightly compiler and libFuzzer that
//! `scripts/fuzz` needs: on arbitrary bytes, and on modified examples. `SHIZUKU_SEED` makes the
//! same inputs again, `SHIZUKU_LONG=1` makes a hundred times as many.

// The fuzz targets are a workspace of their own, which needs libFuzzer.
#[path = "../../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is a crate of its own too")]
mod targets;

use std::panic::catch_unwind;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use shizuku_kv_tests::{is_long, number};

use super::{ALONE, MEMORY};

/// Maximum memory of all the targets together at any time, in MiB.
const MOST_MEMORY: f32 = 64.0;

/// Runs a target on its examples, and on this many inputs.
fn run(target: fn(&[u8]), examples: Vec<Vec<u8>>, inputs: usize) {
    let _alone = ALONE.blocking_lock();
    MEMORY.reset_peak_usage();
    let seed: u64 = number("SHIZUKU_SEED").unwrap_or(1);
    println!("SHIZUKU_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);

    let inputs = if is_long() { inputs * 100 } else { inputs };
    let made = (0..inputs).map(|_| input(&mut random, &examples)).collect::<Vec<_>>();
    for input in examples.iter().chain(&made) {
        if catch_unwind(|| target(input)).is_err() {
            panic!("it fails with these {} bytes: {input:02x?}", input.len());
        }
    }
    assert!(MEMORY.peak_usage_as_mb() < MOST_MEMORY, "{} MiB were held", MEMORY.peak_usage_as_mb());
}

fn input(random: &mut TestRng, examples: &[Vec<u8>]) -> Vec<u8> {
    let mut below = |bound: usize| random.next_u64() as usize % bound;
    if below(3) == 0 {
        let len = 1 + below(200);
        return (0..len).map(|_| below(256) as u8).collect();
    }
    let mut input = examples[below(examples.len())].clone();
    for _ in 0..1 + below(6) {
        let at = below(input.len() + 1);
        match below(5) {
            0 => input.truncate(at),
            1 => input.insert(at, below(256) as u8),
            2 => input.extend_from_within(at..),
            3 => {
                let other = &examples[below(examples.len())];
                input.extend(&other[below(other.len() + 1)..]);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << below(8);
                }
            }
        }
        input.truncate(4096);
    }
    input
}

#[test]
fn cursors_are_never_misread() {
    run(targets::cursor::run, targets::cursor::examples(), 5_000);
}

#[test]
fn versions_are_never_misread() {
    run(targets::version::run, targets::version::examples(), 20_000);
}

#[test]
fn keys_are_what_the_grammar_says() {
    run(targets::key::run, targets::key::examples(), 1_000);
}

#[test]
fn logs_of_any_bytes_are_read_alike_or_refused() {
    run(targets::log::run, targets::log::examples(), 1_000);
}
