//! Open files whose rows are read where they lie: by row, and by blocks of neighbours.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

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
    /// Rows of the files in a block.
    pub block: usize,
    pub bad_rows: BadRows,
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
    pub fn new(opened: Arc<Opened>, mut keep: Vec<bool>) -> Self {
        let mut starts = vec![0];
        let mut kept = 0u32;
        for rows in keep.chunks(opened.block) {
            kept += rows.iter().filter(|&&keep| keep).count() as u32;
            starts.push(kept);
        }
        if !keep.contains(&false) {
            keep = vec![];
        }
        Self { opened, starts, keep }
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
        let Opened { block: rows, all, .. } = *self.opened;
        let first = block as usize * rows;
        first..all.min(first + rows)
    }

    /// Reads rows of the files, those included that were dropped.
    fn read(&self, rows: Range<usize>) -> Result<Values> {
        let mut looked_at = None;
        let Opened { plans, stamps, .. } = &*self.opened;
        for (number, plan) in self.pieces_of(&rows).map(|at| (at.plan, &plans[at.plan as usize])) {
            if looked_at.replace(number) != Some(number) && stamp(plan)? != stamps[number as usize] {
                let what = "was written to while it was read; put it back as it was and go on with `sae train --resume RUN`, or train anew";
                return Err(Error::data(&plan.file.path, "", what));
            }
        }
        let pieces: Vec<Located<'_>> = self.pieces_of(&rows).map(|at| self.located(at)).collect();
        self.read_from(&pieces, rows)
    }

    /// The same without a look at whether the files changed; `pieces` are those that have the rows, or all.
    pub fn read_from(&self, pieces: &[Located<'_>], rows: Range<usize>) -> Result<Values> {
        let (n, d) = (rows.len(), self.d_in());
        let mut values = Values::zeros(self.dtype(), n * d).ok_or_else(|| no_room(n, d))?;
        read_range(pieces, rows, &mut values)?;
        Ok(values)
    }

    /// The rows of a block.
    fn read_block(&self, block: u32) -> Result<Resident> {
        let rows = self.rows_of(block);
        let mut values = self.read(rows.clone())?;
        if let Some(keep) = self.keep.get(rows).filter(|keep| keep.contains(&false)) {
            values.retain_rows(self.d_in(), keep);
        }
        Resident::new(values, self.d_in())
    }

    pub fn read_blocks(&self, blocks: &[u32]) -> Result<Vec<(u32, Resident)>> {
        let requests = interrupt::Requests::here();
        let read = |&block: &u32| {
            requests.check()?;
            Ok((block, self.read_block(block)?))
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
        let mut bytes = Values::zeros(self.dtype(), rows.len() * d).ok_or_else(|| no_room(rows.len(), d))?;
        let width = d * self.dtype().size();
        let out = bytes.bytes_mut().chunks_exact_mut(width);
        if together {
            let values = self.read(span.clone())?;
            for (place, out) in places.iter().zip(out) {
                out.copy_from_slice(&values.bytes()[(place - span.start) * width..][..width]);
            }
        } else {
            for (&place, out) in places.iter().zip(out) {
                out.copy_from_slice(self.read(place..place + 1)?.bytes());
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
