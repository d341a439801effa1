//! A consistent copy of a database that is written to meanwhile.

use std::path::Path;

use ::redb::{Durability, ReadTransaction, ReadableTable};

use super::failure::Failure;
use super::folder::{Draft, Opened};
use super::tables::TABLES;
use crate::store::KvResult;

/// Number of bytes that one commit of the copy has, so that its memory is bounded.
const PIECE: usize = 16 * 1024 * 1024;

/// Copies what a transaction sees to a new folder. Blocks.
///
/// The copy has one snapshot, so that it is consistent. Pages that are overwritten meanwhile are
/// not used again until it ends: the database grows by them.
pub(super) fn copy(source: &Opened, target: &Path) -> KvResult<()> {
    let draft = Draft::new(target)?;
    let failed = |failure: Failure| failure.to_error("backup", target, None);
    let copied = source.begin_read().and_then(|snapshot| copy_tables(&snapshot, &draft));
    copied.map_err(failed)?;
    draft.publish().map_err(failed)
}

fn copy_tables(snapshot: &ReadTransaction, draft: &Draft) -> Result<(), Failure> {
    for definition in TABLES {
        let table = snapshot.open_table(definition)?;
        let mut rows = table.iter()?;
        let mut is_left = true;
        while is_left {
            let mut transaction = draft.begin_write()?;
            // The last commit makes all of them durable.
            transaction.set_durability(Durability::None)?;
            {
                let mut copy = transaction.open_table(definition)?;
                let mut bytes = 0;
                is_left = false;
                for row in rows.by_ref() {
                    let (key, value) = row?;
                    copy.insert(key.value(), value.value())?;
                    bytes += key.value().len() + value.value().len();
                    if bytes >= PIECE {
                        is_left = true;
                        break;
                    }
                }
            }
            transaction.commit()?;
        }
    }
    draft.begin_write()?.commit()?;
    Ok(())
}
