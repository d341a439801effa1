//! A consistent copy of a database that is written to meanwhile.

use std::path::Path;

use ::redb::{Durability, ReadTransaction, ReadableTable, TableHandle};

use super::draft::{BACKUP, Draft};
use super::failure::Failure;
use super::folder::Opened;
use super::tables::{STORES, StoreRow, TABLES};
use crate::backend::embedded::incarnation;
use crate::store::{KvError, KvResult};

/// Maximum number of bytes in one commit of the copy, so that its memory is bounded.
const PIECE: usize = 16 * 1024 * 1024;

/// The reason why a copy is not complete.
enum Fault {
    Source(Failure),
    Target(Failure),
    Ended,
}

/// Copies a snapshot of all stores to a new folder. Fails once `is_ended` returns `true`. Blocks.
/// The caller publishes the returned draft.
///
/// The copy has one snapshot, so that it is consistent. Pages that are overwritten meanwhile are
/// not used again until it ends: the database grows by them.
pub(super) fn copy(
    source: &Opened,
    path: &Path,
    target: &Path,
    is_ended: impl Fn() -> bool,
) -> KvResult<Draft> {
    let draft = Draft::new(target)?;
    let copied = source.begin_read().map_err(Fault::Source);
    match copied.and_then(|snapshot| copy_tables(&snapshot, &draft, is_ended)) {
        Ok(()) => Ok(draft),
        Err(Fault::Source(failure)) => Err(failure.to_error(BACKUP, path, None)),
        Err(Fault::Target(failure)) => Err(failure.to_error(BACKUP, target, None)),
        Err(Fault::Ended) => {
            let reason = format!(
                "the copy of {} has ended with its connection, or with a write that failed; repeat the call",
                path.display()
            );
            Err(KvError::unavailable(BACKUP, reason))
        }
    }
}

fn copy_tables(
    snapshot: &ReadTransaction,
    draft: &Draft,
    is_ended: impl Fn() -> bool,
) -> Result<(), Fault> {
    fn source(error: impl Into<Failure>) -> Fault {
        Fault::Source(error.into())
    }
    fn target(error: impl Into<Failure>) -> Fault {
        Fault::Target(error.into())
    }
    for definition in TABLES {
        let table = snapshot.open_table(definition).map_err(source)?;
        let mut rows = table.iter().map_err(source)?;
        let mut is_left = true;
        while is_left {
            let mut transaction = draft.begin_write().map_err(target)?;
            // The last commit makes all of them durable.
            transaction.set_durability(Durability::None).map_err(target)?;
            {
                let mut copy = transaction.open_table(definition).map_err(target)?;
                let mut bytes = 0;
                is_left = false;
                for row in rows.by_ref() {
                    if is_ended() {
                        return Err(Fault::Ended);
                    }
                    let (key, value) = row.map_err(source)?;
                    if definition.name() == STORES.name() {
                        // The copy is another store. A cursor of the original would skip changes.
                        let mut row = StoreRow::read(value.value()).map_err(source)?;
                        row.incarnation = incarnation();
                        let row = row.to_bytes().map_err(source)?;
                        copy.insert(key.value(), row.as_slice()).map_err(target)?;
                    } else {
                        copy.insert(key.value(), value.value()).map_err(target)?;
                    }
                    bytes += key.value().len() + value.value().len();
                    if bytes >= PIECE {
                        is_left = true;
                        break;
                    }
                }
            }
            transaction.commit().map_err(target)?;
        }
    }
    Ok(())
}
