//! The rows in memory, with their ids.

use std::fmt;
use std::path::{Path, PathBuf};

use super::kind::Dtype;
use super::read::Values;
use crate::console;
use crate::error::{Error, Result};

/// Embeddings in memory, in the type they are stored in.
///
/// Several files of different types take the narrowest type that holds them all.
#[derive(Clone, Debug)]
pub struct Embeddings {
    pub(super) values: Values,
    pub(super) n_rows: usize,
    pub(super) d_in: usize,
    pub(super) groups: Groups,
    pub(super) skipped: Skipped,
    pub(super) sources: Vec<Source>,
}

/// Which rows the split keeps together.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    pub ids: Vec<String>,
    /// Group and residue (from 1; 0 for a row that is no residue) of each row;
    /// empty if every row is a group of its own.
    pub of_row: Vec<(u32, u32)>,
}

/// One file that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What its rows are: `one vector per id`, `residues per id` or `matrix`.
    pub layout: &'static str,
    /// The dataset, or how many there are, in words.
    pub datasets: String,
    /// Rows taken from it.
    pub n_rows: usize,
}

/// Rows that were dropped by `skip_bad_rows`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Skipped {
    /// Rows with a NaN, an infinity, or a value too large for float32.
    pub non_finite: usize,
    /// Rows of another width than most.
    pub width: usize,
    /// Rows whose id was seen before.
    pub duplicate: usize,
    /// Rows whose id is empty or holds a control character, such as a tab.
    pub bad_id: usize,
    /// The first of each kind, as the error would have told it.
    pub examples: Vec<String>,
}

impl Skipped {
    /// All dropped rows.
    pub fn total(&self) -> usize {
        self.non_finite + self.width + self.duplicate + self.bad_id
    }

    /// Tells on standard error that rows were dropped, and the first of them; nothing where none was.
    pub(crate) fn warn(&self) {
        if self.total() > 0 {
            let example = self.examples.first().map_or(String::new(), |e| format!("; the first: {e}"));
            console::warn(format_args!("{self}{example}"));
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.non_finite, "not finite"),
            (self.width, "of another width"),
            (self.duplicate, "with an id seen before"),
            (self.bad_id, "with an unusable id"),
        ];
        let texts: Vec<String> =
            counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        write!(f, "{} rows skipped", self.total())?;
        if !texts.is_empty() {
            write!(f, ": {}", texts.join(", "))?;
        }
        Ok(())
    }
}

impl Embeddings {
    /// Rows of `d_in` float32 values with their ids, as tests and benchmarks make them.
    pub fn from_rows(ids: Vec<String>, d_in: usize, rows: Vec<f32>) -> Result<Self> {
        if ids.is_empty() || ids.len().checked_mul(d_in) != Some(rows.len()) || d_in == 0 {
            return Err(Error::Failed(format!(
                "{} ids of {d_in} values do not make {} values",
                ids.len(),
                rows.len()
            )));
        }
        Ok(Self {
            values: Values::F32(rows),
            n_rows: ids.len(),
            d_in,
            groups: Groups { ids, of_row: Vec::new() },
            skipped: Skipped::default(),
            sources: Vec::new(),
        })
    }

    /// The same rows kept in another type, rounded to the nearest.
    pub fn kept_as(mut self, dtype: Dtype) -> Self {
        use half::slice::HalfFloatSliceExt;
        let mut wide = vec![0.0; self.n_rows * self.d_in];
        for (row, out) in wide.chunks_exact_mut(self.d_in).enumerate() {
            self.row_into(row, out);
        }
        self.values = match dtype {
            Dtype::F16 => {
                let mut out = vec![half::f16::ZERO; wide.len()];
                out.convert_from_f32_slice(&wide);
                Values::F16(out)
            }
            Dtype::Bf16 => {
                let mut out = vec![half::bf16::ZERO; wide.len()];
                out.convert_from_f32_slice(&wide);
                Values::Bf16(out)
            }
            Dtype::F32 => Values::F32(wide),
            Dtype::F64 => Values::F64(wide.into_iter().map(f64::from).collect()),
        };
        self
    }

    /// Number of rows, N.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Width of a row, D.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// The type the rows are kept in.
    pub fn dtype(&self) -> Dtype {
        self.values.dtype()
    }

    /// Memory that the values take.
    pub fn bytes(&self) -> usize {
        self.values.bytes().len()
    }

    /// Memory that values and ids take.
    pub fn memory(&self) -> usize {
        let Groups { ids, of_row } = &self.groups;
        let text: usize = ids.iter().map(|id| id.capacity() + size_of::<String>()).sum();
        self.bytes() + text + size_of_val(of_row.as_slice())
    }

    /// Row `row` as it is stored; `None` for float64, which no device takes as it is.
    ///
    /// # Panics
    ///
    /// If `row` is not a row.
    pub fn stored_row(&self, row: usize) -> Option<&[u8]> {
        let width = self.d_in * self.dtype().size();
        (self.dtype() != Dtype::F64).then(|| &self.values.bytes()[row * width..(row + 1) * width])
    }

    /// Writes row `row` to `out` as float32.
    ///
    /// # Panics
    ///
    /// If `row` is not a row or `out` is not `d_in` long.
    pub fn row_into(&self, row: usize, out: &mut [f32]) {
        self.values.row_into(row, self.d_in, out);
    }

    /// Number of groups: what the split keeps together.
    pub fn n_groups(&self) -> usize {
        self.groups.ids.len()
    }

    /// The group of a row: its protein in per-residue files, else the row itself.
    pub fn group_of(&self, row: usize) -> usize {
        match self.groups.of_row.get(row) {
            Some((group, _)) => *group as usize,
            None => row,
        }
    }

    /// The id of a group.
    pub fn group_id(&self, group: usize) -> &str {
        &self.groups.ids[group]
    }

    /// The id of a row; `id:residue`, residues from 1, in per-residue files.
    pub fn row_id(&self, row: usize) -> String {
        let id = self.group_id(self.group_of(row));
        match self.groups.of_row.get(row) {
            Some((_, residue)) if *residue > 0 => format!("{id}:{residue}"),
            _ => id.to_owned(),
        }
    }

    /// The file of a row, where it was read from one.
    pub fn file_of(&self, row: usize) -> Option<&Path> {
        let mut end = 0;
        let source = self.sources.iter().find(|source| {
            end += source.n_rows;
            row < end
        });
        source.map(|source| source.path.as_path())
    }

    /// Rows that were dropped.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The files, in the order given.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// A hash of ids, width, type and values: equal means that a resumed run sees the same data.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(format!("{} {} {}\n", self.n_rows, self.d_in, self.dtype()).as_bytes());
        for id in &self.groups.ids {
            hash.update(&(id.len() as u64).to_le_bytes());
            hash.update(id.as_bytes());
        }
        for (group, residue) in &self.groups.of_row {
            hash.update(&group.to_le_bytes());
            hash.update(&residue.to_le_bytes());
        }
        hash.update(self.values.bytes());
        hash.digest()
    }
}
