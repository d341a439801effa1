//! A consistent copy of a database that is written to meanwhile.
//!
//! | file | idea |
//! |---|---|
//! | `slices.rs` | the rows of a slice, and the keys that have to be read again |
//! | `fault.rs` | the reasons why a copy is not complete |
//! | `hold.rs` | keeping writers out for the last slices |

mod fault;
mod hold;
mod slices;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::Ordering;

use ::redb::ReadTransaction;

use self::fault::Fault;
use self::hold::Hold;
use self::slices::{Copy, ITEMS};
use super::draft::Draft;
use super::shared::Shared;
use crate::store::KvResult;

/// Number of tries to catch up with the writers, after each of which they are kept out for a while.
/// A copy that is not complete after four times as many ends.
const TRIES: usize = 64;

/// Copies a database into `draft` in slices of at most `items` keys. `begin` begins the read
/// transaction of a slice, and `hold` keeps writers out until its result is dropped. Blocks.
///
/// No read transaction is open between two slices, so that the database can reuse the pages that
/// are overwritten meanwhile (ADR 0113).
fn copy<G, H>(
    draft: &Draft,
    items: usize,
    mut begin: impl FnMut() -> Result<(G, ReadTransaction), Fault>,
    mut hold: impl FnMut() -> Result<H, Fault>,
) -> Result<(), Fault> {
    let mut copy = Copy::new(draft, items);
    let (mut tries, mut next_hold, mut held) = (0, TRIES, None);
    loop {
        let slice = {
            let (_guard, transaction) = begin()?;
            copy.read(&transaction)?
        };
        tries += slice.tries();
        if copy.write(slice)? {
            drop(held);
            return Ok(());
        }
        if tries >= 4 * TRIES {
            return Err(Fault::Behind);
        }
        if tries >= next_hold {
            // The one before would be in the way.
            drop(held.take());
            held = Some(hold()?);
            next_hold = tries + TRIES;
        }
    }
}

/// Copies a database to a new folder. Blocks.
pub(super) fn copy_to(shared: &Shared, target: &Path) -> KvResult<()> {
    let draft = Draft::new(target, shared.folder.permissions())?;
    let begin = || {
        if shared.is_closed.load(Ordering::Acquire) {
            return Err(Fault::Ended);
        }
        shared.begin_read().map_err(Fault::Source)?.ok_or(Fault::Ended)
    };
    let copied = copy(&draft, ITEMS, begin, || Hold::new(shared));
    copied.map_err(|fault| fault.into_error(shared.folder.file(), target))?;
    draft.publish_copy()
}
