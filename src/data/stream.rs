//! Rows block by block, for data that need not fit into memory: the ids stay, the values come and go.

use std::path::PathBuf;

use super::embeddings::{Embeddings, Skipped};
use super::load::{
    Judge, Located, check_ids, check_values, common_width, dtype, groups, locate, n_rows, read_range, see,
    warnings,
};
use super::reading::{Plan, plan};
use super::{BadRows, LoadOptions, data_files};
use crate::error::{Error, Result};
use crate::rows::{Dtype, Resident, Values};

/// Open data files whose rows are read block by block, in the order of [`Embeddings::load`].
pub struct DataFiles {
    pub(super) plans: Vec<Plan>,
    /// What a person should know of them.
    pub(super) warnings: Vec<String>,
    bad_rows: BadRows,
}

impl DataFiles {
    /// Opens `paths` and decides what their rows are; no values are read.
    ///
    /// # Errors
    /// As [`Embeddings::load`], but for those about values.
    pub fn open(paths: &[PathBuf], options: &LoadOptions) -> Result<Self> {
        let found = data_files(paths)?;
        let plans = found.paths.iter().map(|path| plan(path, options)).collect::<Result<Vec<_>>>()?;
        if plans.is_empty() {
            return Err(Error::Usage("no data files given; name at least one".into()));
        }
        let warnings = warnings(found.warnings, &plans);
        Ok(Self { plans, warnings, bad_rows: options.bad_rows })
    }

    /// What a person should know of the files.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(String::as_str)
    }

    /// The rows in blocks of about `bytes` of values, at least one row each. Checks the ids of all rows.
    ///
    /// # Errors
    /// A row of another width, an id seen twice or unusable (unless bad rows are skipped); no rows at all.
    pub fn blocks(&self, bytes: usize) -> Result<Blocks<'_>> {
        let mut judge = Judge::new(self.bad_rows);
        let width = common_width(&self.plans);
        let pieces = locate(&self.plans, width)?;
        let n_rows = n_rows(&pieces)?;
        if n_rows == 0 {
            let what = "holds no rows; give a file with embeddings";
            return Err(Error::data(&self.plans[0].file.path, "", what));
        }
        let mut keep = vec![];
        keep.try_reserve_exact(n_rows).map_err(|_| {
            Error::Failed(format!("{n_rows} rows are too many for the memory; give fewer files"))
        })?;
        keep.resize(n_rows, true);
        check_ids(&pieces, &mut keep, &mut judge)?;
        let (d_in, dtype) = (width as usize, dtype(&pieces));
        let rows = (bytes / d_in.saturating_mul(dtype.size()).max(1)).max(1);
        Ok(Blocks { pieces, keep, judge, d_in, dtype, rows, next: 0 })
    }
}

/// The rows of [`DataFiles`], block by block.
pub struct Blocks<'a> {
    pub(super) pieces: Vec<Located<'a>>,
    pub(super) keep: Vec<bool>,
    pub(super) judge: Judge,
    pub(super) d_in: usize,
    pub(super) dtype: Dtype,
    /// Rows of a block.
    rows: usize,
    /// First row that was not read yet.
    next: usize,
}

impl Blocks<'_> {
    /// Width of a row, D.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// Rows in the files, those included that will be dropped.
    pub fn n_rows(&self) -> usize {
        self.keep.len()
    }

    /// Rows that were read or dropped so far.
    pub fn rows_done(&self) -> usize {
        self.next
    }

    /// Rows that were dropped so far.
    pub fn skipped(&self) -> &Skipped {
        &self.judge.skipped
    }

    /// The next rows that can be used, of the same type in every block; `None` after the last.
    ///
    /// # Errors
    /// A row that is not finite (unless bad rows are skipped); what the disk gives.
    pub fn next_block(&mut self) -> Result<Option<Embeddings>> {
        while self.next < self.keep.len() {
            let rows = self.next..self.keep.len().min(self.next + self.rows);
            let n = rows.len();
            let mut values = Values::zeros(self.dtype, n * self.d_in).ok_or_else(|| {
                Error::Failed(format!("{n} rows of {} {} do not fit the memory", self.d_in, self.dtype))
            })?;
            read_range(&self.pieces, rows.clone(), &mut values)?;
            let keep = &mut self.keep[rows.clone()];
            check_values(&self.pieces, &values, self.d_in, |row| rows.start + row, keep, &mut self.judge)?;
            self.next = rows.end;
            let n_rows = keep.iter().filter(|&&keep| keep).count();
            if n_rows == 0 {
                continue;
            }
            if n_rows < n {
                values.retain_rows(self.d_in, keep);
            }
            let index = groups(&self.pieces, rows, keep);
            return Ok(Some(Embeddings::new(Resident::new(values, self.d_in)?, index, Skipped::default())));
        }
        if let Some(first) = self.pieces.first() {
            self.judge.check_share(first.path(), self.keep.len(), &see(first.path()))?;
        }
        Ok(None)
    }
}
