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

/// Maximum number of slices in which the copy tries to catch up with the writers while they write.
/// It may need three times as many after they were kept out.
const TRIES: usize = 64;

/// Copies a database into `draft` in slices of at most `items` keys. `begin` begins the read
/// transaction of a slice, and `hold` keeps writers out until its result is dropped. Blocks.
///
/// No read transaction is open between two slices, so that the database can use the pages again
/// that are overwritten meanwhile (ADR 0113).
fn copy<G, H>(
    draft: &Draft,
    items: usize,
    mut begin: impl FnMut() -> Result<(G, ReadTransaction), Fault>,
    hold: impl FnOnce() -> Result<H, Fault>,
) -> Result<(), Fault> {
    let mut copy = Copy::new(draft, items);
    let mut hold = Some(hold);
    let (mut tries, mut held) = (0, None);
    loop {
        let slice = {
            let (_guard, transaction) = begin()?;
            copy.read(&transaction)?
        };
        tries += usize::from(slice.catches_up());
        if copy.write(slice)? {
            drop(held);
            return Ok(());
        }
        match hold.take_if(|_| tries == TRIES) {
            Some(hold) => held = Some(hold()?),
            None if tries > 4 * TRIES => return Err(Fault::Behind),
            None => {}
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
