//! Random histories against a map.

use bytes::Bytes;

use super::check::{StorageCheck, storage_checks};
use super::subject::{StorageFixture, checkpoint, delete, key_of, time};
use crate::conformance::{CheckFailure, CheckResult};
use crate::store::{KvEntry, KvUpdate, VersionToken};

pub(super) const CHECKS: &[StorageCheck] = storage_checks! {
    random_histories_end_as_in_a_map []
        "After any commits and reopenings, the storage holds the same as a map.",
};

fn random_histories_end_as_in_a_map(fixture: &StorageFixture) -> CheckResult {
    let seed = fixture.seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for history in 0..fixture.histories() {
        fixture.step(format!("history {history} of SHIZUKU_SEED={seed}"));
        play(fixture, &mut random)?;
    }
    Ok(())
}

fn play(fixture: &StorageFixture, random: &mut fastrand::Rng) -> CheckResult {
    let mut subject = fixture.storage()?;
    // Few keys collide often; many make a storage split and merge.
    let keys = random.choice([3, 20, 300]).unwrap_or(3);
    for commit in 0..30 {
        let size = random.choice([0, 1, 2, 10, 100]).unwrap_or(1);
        let changes = (0..size).map(|_| change(random, keys)).collect::<CheckResult<Vec<_>>>()?;
        let checkpoint =
            random.u8(..4).checked_sub(1).map(|scope| checkpoint(random.u64(..), scope));
        subject.commit(&changes, checkpoint)?;
        if random.u8(..4) == 0 {
            subject.verify(&format!("after commit {commit}"))?;
        }
        if fixture.is_durable() && random.u8(..6) == 0 {
            subject.reopen()?;
        }
    }
    subject.verify("in the end")
}

fn change(random: &mut fastrand::Rng, keys: u64) -> CheckResult<KvUpdate> {
    let key = format!("key.{}", random.u64(..keys));
    let number = random.u64(..1000);
    Ok(match random.u8(..20) {
        0 => KvUpdate::CaughtUp,
        1..7 => delete(&key, number)?,
        _ => {
            let version = match random.bool() {
                true => VersionToken::from_u64(number),
                false => VersionToken::opaque(&number.to_be_bytes()[random.usize(..8)..])?,
            };
            let size =
                random.choice([0, 1, 10, 200, 5000]).ok_or_else(|| CheckFailure::new("no size"))?;
            let value = Bytes::from(vec![random.u8(..); size]);
            KvUpdate::Put(KvEntry::put(key_of(&key)?, value, version, time(random.u64(..1000))))
        }
    })
}
