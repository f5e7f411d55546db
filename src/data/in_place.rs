//! Open files whose rows are read where they lie: by row, and by blocks of neighbours.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::BadRows;
use super::first_pass::FileStamp;
use super::load::{Located, read_range};
use super::reading::Plan;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::rows::{Dtype, Resident, Values};

/// Which rows of open files there are, and their blocks.
pub(super) struct Files {
    pub opened: Arc<Opened>,
    /// First row of each block, of all rows of the files, and their number.
    pub blocks: Vec<usize>,
    /// First row of each block, counted without those that were dropped, and the number of rows.
    pub starts: Vec<u32>,
    /// Which rows of the files are rows; all where this is empty.
    pub keep: Vec<bool>,
}

/// Open files and where their rows are.
pub(super) struct Opened {
    pub plans: Vec<Plan>,
    pub pieces: Vec<At>,
    /// As they were at the start.
    pub stamps: Vec<FileStamp>,
    pub d_in: usize,
    pub dtype: Dtype,
    /// Rows of the files, those included that were dropped.
    pub all: usize,
    pub bad_rows: BadRows,
}

/// Where blocks of about `block` rows begin, and the number of rows. A block ends with its piece's chunk, which would
/// otherwise be unpacked for two blocks, unless a chunk has more than `most` rows.
pub(super) fn blocks(pieces: &[Located<'_>], block: usize, most: usize) -> Vec<usize> {
    let (mut starts, mut first) = (vec![0], 0);
    for piece in pieces {
        let rows = piece.rows();
        // Whole pieces that are no more than a block need no look at their chunks.
        let chunk = if rows.len() > block { piece.chunk_rows().filter(|&rows| rows <= most) } else { None };
        let chunk = chunk.unwrap_or(1);
        while rows.end - first > block {
            let wanted = (first + block).max(rows.start);
            let within = (wanted - rows.start) / chunk * chunk;
            let mut end = rows.start + within;
            if end <= first {
                end = rows.end.min(end + chunk);
            }
            starts.push(end);
            first = end;
        }
    }
    if let Some(end) = pieces.last().map(|piece| piece.rows().end).filter(|&end| end > first) {
        starts.push(end);
    }
    starts
}

/// Memory of blocks that are no longer needed: what is taken anew from the system is zeroed by it, page by page.
#[derive(Default)]
pub(super) struct Spare(Mutex<Vec<Values>>);

impl Spare {
    /// Memory of exactly `bytes` bytes.
    fn take(&self, bytes: usize) -> Option<Values> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = spare.iter().rposition(|values| values.bytes().len() == bytes)?;
        Some(spare.swap_remove(at))
    }

    /// Has what these blocks took, where nobody reads them, in place of what was there before.
    pub fn fill(&self, blocks: impl Iterator<Item = Arc<Resident>>) {
        let values = blocks.filter_map(|rows| Some(Arc::into_inner(rows)?.into_values()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = values.collect();
    }
}

/// A piece of a plan, and the number of its first row.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub plan: u32,
    pub piece: u32,
    pub start: usize,
}

pub(super) fn no_room(rows: usize, d_in: usize) -> Error {
    Error::Failed(format!("{rows} rows of {d_in} values do not fit the memory; give a smaller --memory"))
}

pub(super) fn stamp(plan: &Plan) -> Result<FileStamp> {
    let path = plan.file.path.clone();
    let meta = plan.file.raw.metadata().map_err(Error::io(&path, "read"))?;
    Ok(FileStamp { path, modified: (meta.mtime(), meta.mtime_nsec()), bytes: meta.len() })
}

impl Files {
    /// `keep` has a mark for each row of the files.
    pub fn new(opened: Arc<Opened>, blocks: Vec<usize>, mut keep: Vec<bool>) -> Self {
        let mut starts = vec![0];
        let mut kept = 0u32;
        for ends in blocks.windows(2) {
            let rows = &keep[ends[0]..ends[1]];
            kept += rows.iter().filter(|&&keep| keep).count() as u32;
            starts.push(kept);
        }
        if !keep.contains(&false) {
            keep = vec![];
        }
        Self { opened, blocks, starts, keep }
    }

    pub fn n_rows(&self) -> usize {
        self.starts.last().map_or(0, |&n| n as usize)
    }

    /// Rows of the files, those included that were dropped.
    pub fn all(&self) -> usize {
        self.opened.all
    }

    pub fn d_in(&self) -> usize {
        self.opened.d_in
    }

    pub fn dtype(&self) -> Dtype {
        self.opened.dtype
    }

    /// What the files were like at the start.
    pub fn stamps(&self) -> impl Iterator<Item = &FileStamp> {
        self.opened.stamps.iter()
    }

    /// Which of `rows` of the files are rows.
    pub fn marks(&self, rows: Range<usize>) -> Vec<bool> {
        self.keep.get(rows.clone()).map_or_else(|| vec![true; rows.len()], <[bool]>::to_vec)
    }

    /// All pieces.
    pub fn pieces(&self) -> Vec<Located<'_>> {
        self.opened.pieces.iter().map(|at| self.located(at)).collect()
    }

    pub fn block_of(&self, row: u32) -> u32 {
        // The last that begins there: those before it have no rows.
        self.starts.partition_point(|&start| start <= row).saturating_sub(1) as u32
    }

    /// Rows of the files in a block.
    fn rows_of(&self, block: u32) -> Range<usize> {
        let block = block as usize;
        self.blocks[block]..self.blocks[block + 1]
    }

    /// Memory for some rows.
    fn room(&self, rows: usize) -> Result<Values> {
        let d = self.d_in();
        Values::zeros(self.dtype(), rows * d).ok_or_else(|| no_room(rows, d))
    }

    /// Reads rows of the files, those included that were dropped, into memory of their size.
    fn read(&self, rows: Range<usize>, mut values: Values) -> Result<Values> {
        let mut looked_at = None;
        let Opened { plans, stamps, .. } = &*self.opened;
        for (number, plan) in self.pieces_of(&rows).map(|at| (at.plan, &plans[at.plan as usize])) {
            if looked_at.replace(number) != Some(number) && stamp(plan)? != stamps[number as usize] {
                let what = "was written to while it was read; put it back as it was and go on with `sae train --resume RUN`, or train anew";
                return Err(Error::data(&plan.file.path, "", what));
            }
        }
        let pieces: Vec<Located<'_>> = self.pieces_of(&rows).map(|at| self.located(at)).collect();
        read_range(&pieces, rows, &mut values)?;
        Ok(values)
    }

    /// Reads rows without a look at whether the files changed; `pieces` are those that have the rows, or all.
    pub fn read_from(&self, pieces: &[Located<'_>], rows: Range<usize>) -> Result<Values> {
        let mut values = self.room(rows.len())?;
        read_range(pieces, rows, &mut values)?;
        Ok(values)
    }

    /// The rows of a block.
    fn read_block(&self, block: u32, spare: &Spare) -> Result<Resident> {
        let rows = self.rows_of(block);
        let size = rows.len() * self.d_in() * self.dtype().size();
        let values = match spare.take(size) {
            Some(values) => values,
            None => self.room(rows.len())?,
        };
        let mut values = self.read(rows.clone(), values)?;
        if let Some(keep) = self.keep.get(rows).filter(|keep| keep.contains(&false)) {
            values.retain_rows(self.d_in(), keep);
        }
        Resident::new(values, self.d_in())
    }

    /// Reads blocks in parallel, into memory that is `spare` as far as it goes.
    pub fn read_blocks(&self, blocks: &[u32], spare: &Spare) -> Result<Vec<(u32, Resident)>> {
        let requests = interrupt::Requests::here();
        let read = |&block: &u32| {
            requests.check()?;
            Ok((block, self.read_block(block, spare)?))
        };
        blocks.par_iter().map(read).collect()
    }

    /// Some rows of one block, ascending: the stretch that holds them, or each alone where they are far apart.
    pub fn read_some(&self, rows: &[u32]) -> Result<Resident> {
        let block = self.block_of(rows[0]);
        let range = self.rows_of(block);
        let start = self.starts[block as usize];
        // Places in the files of the rows of the block.
        let places: Vec<usize> = match self.keep.get(range.clone()) {
            Some(keep) => range.clone().zip(keep).filter(|(_, keep)| **keep).map(|(row, _)| row).collect(),
            None => range.clone().collect(),
        };
        let places: Vec<usize> = rows.iter().map(|&row| places[(row - start) as usize]).collect();
        let span = places[0]..places[places.len() - 1] + 1;
        let together = places.len() * 8 >= span.len() || !self.is_plain(&span);
        let d = self.d_in();
        let mut bytes = self.room(rows.len())?;
        let width = d * self.dtype().size();
        let out = bytes.bytes_mut().chunks_exact_mut(width);
        if together {
            let values = self.read(span.clone(), self.room(span.len())?)?;
            for (place, out) in places.iter().zip(out) {
                out.copy_from_slice(&values.bytes()[(place - span.start) * width..][..width]);
            }
        } else {
            for (&place, out) in places.iter().zip(out) {
                out.copy_from_slice(self.read(place..place + 1, self.room(1)?)?.bytes());
            }
        }
        Resident::new(bytes, d)
    }

    /// Whether rows of the files can be read one by one: values of others need not be read for them.
    fn is_plain(&self, rows: &Range<usize>) -> bool {
        self.pieces_of(rows).all(|at| self.located(at).is_plain())
    }

    /// The pieces that have some of these rows.
    fn pieces_of(&self, rows: &Range<usize>) -> impl Iterator<Item = &At> {
        let Opened { pieces, .. } = &*self.opened;
        let (first, end) = (pieces.partition_point(|at| at.start <= rows.start).saturating_sub(1), rows.end);
        pieces[first..].iter().take_while(move |at| at.start < end)
    }

    fn located(&self, at: &At) -> Located<'_> {
        Located::new(&self.opened.plans[at.plan as usize], at.plan as usize, at.piece as usize, at.start)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::data::LoadOptions;
    use crate::data::load::locate;
    use crate::data::reading::plan;

    #[test]
    fn a_block_ends_with_a_chunk_unless_chunks_are_too_large() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.h5");
        let file = hdf5::File::create(&path).unwrap();
        let add = |name: &str, rows: usize, chunk: Option<usize>| {
            let set = file.new_dataset::<f32>().shape((rows, 4));
            let set = if let Some(chunk) = chunk { set.chunk((chunk, 4)).deflate(1) } else { set };
            let values = vec![1.0f32; rows * 4];
            set.create(name).unwrap().as_writer().write_raw(&values).unwrap();
        };
        add("a", 7, None);
        add("b", 100, Some(30));
        add("c", 3, Some(3));
        add("d", 40, None);
        file.close().unwrap();
        let plan = [plan(&path, &LoadOptions::default()).unwrap()];
        let pieces = locate(&plan, 4).unwrap();
        let of = |block, most| blocks(&pieces, block, most);
        // The second piece has rows 7 to 107 and chunks from 7, 37, 67 and 97 on.
        assert_eq!(of(50, 1000), [0, 37, 67, 117, 150]);
        assert_eq!(of(10, 1000), [0, 7, 37, 67, 97, 107, 117, 127, 137, 147, 150]);
        assert_eq!(of(70, 1000), [0, 67, 137, 150]);
        assert_eq!(of(50, 29), [0, 50, 100, 150]);
        assert_eq!(of(1000, 1000), [0, 150]);
        assert_eq!(blocks(&[], 5, 5), [0]);
    }
}
