//! Taking in many runs at once, on a machine that knows little of a large repository. Each run is sorted, but each touches every page
//! of the table: a thousand runs of 65 536 chunks, one after the other, write a database of gigabytes a thousand times. So their rows
//! first go to files by the beginning of their ids, and then into the table in its order, which writes each page once.
//!
//! The runs count when all rows are there. If it breaks off before that, taking them in again, in whatever way, continues to be right.

use super::catalog::{self, CopyWriter, StoredCopy, insert_deltas};
use super::{IndexError, LocalIndex, Trouble};
use crate::pure::format::run::RunContent;
use crate::pure::id::{ChunkId, KeyId, SessionId};
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};

/// Files by the first byte of the id, ascending.
const BUCKETS: usize = 256;
/// Written to a file at a time.
const BUFFER_BYTES: usize = 32 << 10;
/// Rows in one transaction.
const ROWS_AT_ONCE: usize = 1 << 16;
/// id 32 | pack handle u32 | offset u32 | type << 28 | stored length u32.
const ROW_BYTES: usize = 44;

/// Runs that are being taken in.
pub struct BulkImport<'i> {
    index: &'i LocalIndex,
    buckets: Vec<BufWriter<File>>,
    runs: Vec<Run>,
}

struct Run {
    name: String,
    session: SessionId,
    kid: KeyId,
    chunks: usize,
    packs: Vec<u32>,
}

fn no_room(source: io::Error) -> IndexError {
    IndexError::Sorting(source)
}

impl<'i> BulkImport<'i> {
    /// Begins; the files have no names and lie beside the index.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn begin(index: &'i LocalIndex) -> Result<BulkImport<'i>, IndexError> {
        let bucket = |_| {
            let file = tempfile::tempfile_in(index.directory()).map_err(no_room)?;
            Ok(BufWriter::with_capacity(BUFFER_BYTES, file))
        };
        Ok(BulkImport {
            index,
            buckets: (0..BUCKETS).map(bucket).collect::<Result<_, IndexError>>()?,
            runs: Vec::new(),
        })
    }

    /// Adds a run of level 0.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] if records refer to packs or slots that the run does not have: then nothing of it was added.
    pub fn add(&mut self, name: &str, session: SessionId, kid: KeyId, content: &RunContent) -> Result<(), IndexError> {
        let index = self.index;
        let packs = index.write(|connection| {
            if content
                .chunks
                .iter()
                .any(|chunk| chunk.pack_ix as usize >= content.packs.len())
            {
                return Err(Trouble::Inconsistent {
                    name: name.to_owned(),
                    what: "a record uses a pack that is not there",
                });
            }
            let packs = catalog::describe_run(connection, index, name, &session, &kid, content)?;
            insert_deltas(connection, name, &content.deltas, &packs)?;
            Ok(packs)
        })?;
        for chunk in &content.chunks {
            let copy = StoredCopy {
                pack: packs[chunk.pack_ix as usize],
                offset: chunk.offset,
                stored_as: chunk.stored_as,
                stored_len: chunk.stored_len,
            };
            let mut row = [0; ROW_BYTES];
            row[..32].copy_from_slice(chunk.id.as_bytes());
            row[32..36].copy_from_slice(&copy.pack.to_le_bytes());
            row[36..40].copy_from_slice(&copy.offset.to_le_bytes());
            row[40..].copy_from_slice(&copy.type_and_len().to_le_bytes());
            self.buckets[usize::from(chunk.id.0[0])]
                .write_all(&row)
                .map_err(no_room)?;
        }
        self.runs.push(Run {
            name: name.to_owned(),
            session,
            kid,
            chunks: content.chunks.len(),
            packs,
        });
        Ok(())
    }

    /// Puts all rows into the index; the runs count from then on.
    ///
    /// # Errors
    /// When the database fails, or a file cannot be read.
    pub fn finish(self) -> Result<(), IndexError> {
        for bucket in self.buckets {
            let rows = read_back(bucket).map_err(no_room)?;
            for rows in rows.chunks(ROWS_AT_ONCE) {
                self.index.add_chunks(
                    |connection| {
                        let mut writer = CopyWriter::new(connection)?;
                        rows.iter().try_for_each(|(id, copy)| writer.put(id, copy))
                    },
                    |add| rows.iter().for_each(|(id, _)| add(id)),
                )?;
            }
        }
        self.index.write(|connection| {
            for run in &self.runs {
                catalog::finish_run(connection, &run.name, &run.session, &run.kid, run.chunks, &run.packs)?;
            }
            Ok(())
        })
    }
}

/// Reads a bucket and sorts it.
fn read_back(bucket: BufWriter<File>) -> io::Result<Vec<(ChunkId, StoredCopy)>> {
    let mut file = bucket.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    let rows = file.metadata()?.len() as usize / ROW_BYTES;
    let mut sorted = Vec::with_capacity(rows);
    let mut reader = io::BufReader::with_capacity(1 << 20, file);
    let mut row = [0; ROW_BYTES];
    for _ in 0..rows {
        io::Read::read_exact(&mut reader, &mut row)?;
        let word = |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        let mut id = [0; 32];
        id.copy_from_slice(&row[..32]);
        let copy = StoredCopy::from_words(word(32), word(36), word(40))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a row came back as another one"))?;
        sorted.push((ChunkId(id), copy));
    }
    sorted.sort_unstable_by_key(|(id, copy)| (*id, copy.pack, copy.offset));
    Ok(sorted)
}
