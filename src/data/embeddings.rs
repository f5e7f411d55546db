//! A data set in memory: rows with their ids, and what was dropped on the way.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::first_pass::{FirstPass, Seen};
use super::groups;
use super::load::{holds_no_rows, warn_of_zeros};
use super::streamed::{Fewer, Streamed};
use crate::console;
use crate::error::{Error, Result};
use crate::rows::{Dtype, Moments, Resident, RowIndex, RowSource, Values, hash_rows};
use xxhash_rust::xxh3::Xxh3;

/// Embeddings in the type they are stored in, with their ids: in memory, or in files that are read as training asks.
///
/// Several files of different types take the narrowest type that holds them all.
#[derive(Clone, Debug)]
pub struct Embeddings {
    rows: Rows,
    index: RowIndex,
    skipped: Skipped,
    pub(super) warnings: Vec<String>,
    pub(super) zero_rows: usize,
    /// Mean and variance of rows that were asked for; there are few splits of the same rows.
    moments: Arc<Mutex<Vec<Moments>>>,
    fingerprint: OnceLock<u64>,
    on_devices: OnDevices,
    /// What the first pass found over rows that stay in their files.
    first_pass: Option<Arc<FirstPass>>,
}

/// What devices have of the rows.
#[derive(Clone, Default)]
struct OnDevices(Arc<Mutex<Vec<Arc<dyn Any + Send + Sync>>>>);

impl fmt::Debug for OnDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnDevices")
    }
}

/// Where the rows are.
#[derive(Clone, Debug)]
enum Rows {
    Resident(Resident),
    Streamed(Streamed),
}

/// Rows that were dropped because they cannot be used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Skipped {
    /// Rows with a NaN, an infinity, or a value too large for float32.
    pub non_finite: usize,
    /// Rows whose id was seen before.
    pub duplicate: usize,
    /// Rows whose id is empty or holds a control character, such as a tab.
    pub bad_id: usize,
    /// The first of each kind, as the error would have named it.
    pub examples: Vec<String>,
}

impl Skipped {
    /// All dropped rows.
    pub fn total(&self) -> usize {
        self.non_finite + self.duplicate + self.bad_id
    }

    /// Warns that rows were dropped, and the first of them; nothing where none was.
    pub(crate) fn warn(&self) {
        if self.total() > 0 {
            let example = self.examples.first().map_or(String::new(), |e| format!("; the first: {e}"));
            console::warn(format_args!("{self}{example}"));
        }
    }
}

impl Skipped {
    /// How many of each kind, in words.
    pub(super) fn kinds(&self) -> String {
        let counts = [
            (self.non_finite, "not finite"),
            (self.duplicate, "with an id seen before"),
            (self.bad_id, "with an unusable id"),
        ];
        let texts: Vec<String> =
            counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        texts.join(", ")
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows skipped", self.total())?;
        if self.total() > 0 {
            write!(f, ": {}", self.kinds())?;
        }
        Ok(())
    }
}

impl Embeddings {
    /// Rows with their index; `skipped` were dropped.
    pub(super) fn new(rows: Resident, index: RowIndex, skipped: Skipped) -> Self {
        Self::of(Rows::Resident(rows), index, skipped)
    }

    fn of(rows: Rows, index: RowIndex, skipped: Skipped) -> Self {
        Self {
            rows,
            index,
            skipped,
            warnings: vec![],
            zero_rows: 0,
            moments: Arc::default(),
            fingerprint: OnceLock::new(),
            first_pass: None,
            on_devices: OnDevices::default(),
        }
    }

    /// Looks at the values of all rows that stay in their files, unless one of `known` says what is found there: those that
    /// cannot be used are dropped, and mean and variance of each of `sets` of rows (ascending) are known then. `seen` is
    /// told how many rows of how many were looked at. Nothing is done where the rows are in memory.
    ///
    /// # Errors
    /// As [`Embeddings::load`] for values.
    pub(crate) fn look_through(
        &mut self,
        sets: &[&[u32]],
        known: Vec<FirstPass>,
        seen: Seen<'_>,
    ) -> Result<()> {
        let Rows::Streamed(rows) = &self.rows else { return Ok(()) };
        let before = self.hashed_index().digest();
        let (found, fewer) = rows.look_through(before, sets, known, &mut self.skipped, seen)?;
        if let Some(Fewer { rows, keep, files }) = fewer {
            self.index.retain(&keep, files);
            self.rows = Rows::Streamed(rows);
            self.fingerprint = OnceLock::new();
        }
        if self.n_rows() == 0
            && let Some(file) = self.index.pieces().first()
        {
            return Err(holds_no_rows(&file.path, &self.skipped));
        }
        if let (Some((n, first)), Rows::Streamed(rows)) = (found.zeros(), &self.rows) {
            let first = rows.row_of(first);
            warn_of_zeros(self, Some(first), n);
        }
        found.moments().iter().cloned().for_each(|moments| self.know(moments));
        self.first_pass = Some(Arc::new(found));
        Ok(())
    }

    /// Has rows that stay in their files take at most `memory` bytes of memory from here on.
    ///
    /// # Errors
    /// A window that does not hold what is unpacked together.
    pub(crate) fn narrow(&mut self, memory: u64) -> Result<()> {
        if let Rows::Streamed(rows) = &self.rows {
            self.rows = Rows::Streamed(rows.within(memory)?);
        }
        Ok(())
    }

    /// What the first pass found over rows that stay in their files.
    pub(crate) fn found(&self) -> Option<&FirstPass> {
        self.first_pass.as_deref()
    }

    /// Mean and variance of `rows`, where they are known.
    pub(crate) fn moments(&self, rows: &[u32]) -> Option<Moments> {
        let known = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = hash_rows(rows);
        known.iter().find(|moments| moments.rows == rows).cloned()
    }

    /// Remembers mean and variance of some rows.
    pub(crate) fn know(&self, moments: Moments) {
        let mut known = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().all(|other| other.rows != moments.rows) {
            known.push(moments);
        }
    }

    /// Rows that stay in their files.
    pub(super) fn of_files(rows: Streamed, index: RowIndex, skipped: Skipped) -> Self {
        Self::of(Rows::Streamed(rows), index, skipped)
    }

    /// Whether rows stay in their files.
    pub fn is_streamed(&self) -> bool {
        matches!(self.rows, Rows::Streamed(_))
    }

    /// Adds what a person should know of the files.
    pub(crate) fn warn_of(&mut self, mut warnings: Vec<String>) {
        warnings.append(&mut self.warnings);
        self.warnings = warnings;
    }

    /// What a person should know of the files before using the rows.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Rows that hold only zeros.
    pub fn zero_rows(&self) -> usize {
        self.zero_rows
    }

    /// Rows of `d_in` float32 values with their ids.
    ///
    /// # Errors
    /// [`Error::Failed`] where ids and values are not as many rows.
    pub fn from_rows(ids: Vec<String>, d_in: usize, rows: Vec<f32>) -> Result<Self> {
        if ids.is_empty() || ids.len().checked_mul(d_in) != Some(rows.len()) || d_in == 0 {
            return Err(Error::Failed(format!(
                "{} ids of {d_in} values do not make {} values",
                ids.len(),
                rows.len()
            )));
        }
        let rows = Resident::new(Values::F32(rows.into()), d_in)?;
        Ok(Self::new(rows, RowIndex::of_ids(ids), Skipped::default()))
    }

    /// The same rows kept in another type, rounded to the nearest, where they are in memory.
    #[must_use]
    pub fn kept_as(self, dtype: Dtype) -> Self {
        let rows = match self.rows {
            Rows::Resident(rows) => Rows::Resident(rows.kept_as(dtype)),
            streamed @ Rows::Streamed(_) => streamed,
        };
        Self {
            rows,
            fingerprint: OnceLock::new(),
            moments: Arc::default(),
            on_devices: OnDevices::default(),
            ..self
        }
    }

    fn source(&self) -> &dyn RowSource {
        match &self.rows {
            Rows::Resident(rows) => rows,
            Rows::Streamed(rows) => rows,
        }
    }

    /// Gives the ids the groups of a table of two columns, id and group, that a split keeps together; MMseqs2's tables of
    /// group and id are recognised, or `reversed` says so. Ids that it lacks are groups of their own, with a warning.
    ///
    /// # Errors
    /// A file that cannot be read or has other columns; an id in two groups; a table of other ids.
    pub fn group_by_table(&mut self, path: &Path, reversed: bool) -> Result<()> {
        let warning = groups::apply(&mut self.index, path, reversed)?;
        self.warnings.extend(warning);
        Ok(())
    }

    /// Which rows there are.
    pub fn index(&self) -> &RowIndex {
        &self.index
    }

    /// Number of rows, N.
    pub fn n_rows(&self) -> usize {
        self.source().n_rows()
    }

    /// Width of a row, D.
    pub fn d_in(&self) -> usize {
        self.source().d_in()
    }

    /// The type the rows are kept in.
    pub fn dtype(&self) -> Dtype {
        self.source().dtype()
    }

    /// Memory that the values take.
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::Resident(rows) => rows.values().bytes().len(),
            Rows::Streamed(rows) => rows.bytes(),
        }
    }

    /// Memory that values and ids take.
    pub fn memory(&self) -> usize {
        // Lists of the rows of a split, of their order, and of those that stay; in files they are the most of it.
        let lists = if self.is_streamed() { 12 * self.n_rows() } else { 0 };
        self.bytes() + self.index.memory() + lists
    }

    /// Writes row `row` to `out` as float32.
    ///
    /// # Panics
    /// If `row` is not a row, `out` is not D long, or the rows are not in memory: [`RowSource::read`] has errors.
    pub fn row_into(&self, row: usize, out: &mut [f32]) {
        match &self.rows {
            Rows::Resident(rows) => rows.values().row_into(row, rows.d_in(), out),
            Rows::Streamed(_) => panic!("row {row} is in a file"),
        }
    }

    /// Rows that were dropped.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// A hash of ids, width and type, to go on with.
    fn hashed_index(&self) -> Xxh3 {
        let mut hash = Xxh3::new();
        hash.update(format!("{} {} {}\n", self.n_rows(), self.d_in(), self.dtype()).as_bytes());
        self.index.hash(&mut hash);
        hash
    }

    /// A hash of ids, width, type and values: equal means that a resumed run sees the same data. Of rows that stay in their
    /// files the values of a thousand.
    ///
    /// # Errors
    /// As [`RowSource::read`].
    pub fn fingerprint(&self) -> Result<u64> {
        if let Some(&known) = self.fingerprint.get() {
            return Ok(known);
        }
        let mut hash = self.hashed_index();
        match &self.rows {
            Rows::Resident(rows) => hash.update(rows.values().bytes()),
            Rows::Streamed(rows) => rows.hash(&mut hash)?,
        }
        Ok(*self.fingerprint.get_or_init(|| hash.digest()))
    }
}

impl RowSource for Embeddings {
    fn n_rows(&self) -> usize {
        self.source().n_rows()
    }

    fn d_in(&self) -> usize {
        self.source().d_in()
    }

    fn dtype(&self) -> Dtype {
        self.source().dtype()
    }

    fn read(&self, rows: &[u32], out: &mut [f32]) -> Result<()> {
        self.source().read(rows, out)
    }

    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
        self.source().read_stored(row, out)
    }

    fn gather_stored(&self, rows: &[u32], out: &mut [u8]) -> Result<()> {
        self.source().gather_stored(rows, out)
    }

    fn window(&self) -> Option<usize> {
        self.source().window()
    }

    fn block_of(&self, row: u32) -> u32 {
        self.source().block_of(row)
    }

    fn hold(&self, now: &[u32], next: &[u32]) -> Result<()> {
        self.source().hold(now, next)
    }

    fn keep(&self, rows: &[u32]) -> Result<()> {
        self.source().keep(rows)
    }

    fn lend(&self, rows: Arc<dyn Any + Send + Sync>) {
        self.on_devices.0.lock().unwrap_or_else(PoisonError::into_inner).push(rows);
    }

    fn describe(&self, row: u32) -> String {
        let id = self.index.row_id(row as usize);
        let file =
            self.index.file_of(row as usize).map_or(String::new(), |path| format!(" of {}", path.display()));
        format!("row \"{id}\"{file}")
    }
}
