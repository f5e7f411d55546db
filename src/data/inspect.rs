//! What a data file holds, for people and scripts.

use std::collections::HashSet;
use std::path::Path;

use super::load::warnings;
use super::reading::plan;
use super::streamed::within;
use super::{BadRows, Embeddings, LoadOptions, data_files};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::memory::half_of_free;
use crate::rows::{Dtype, RowSource};

/// A summary of a data file, or of a folder of them. Values are over the usable rows, as float32.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FileSummary {
    /// The file or folder as named.
    pub path: String,
    /// Number of files.
    pub n_files: usize,
    /// `one vector per id`, `residues per id` or `matrix`; of several files that of the first.
    pub layout: &'static str,
    /// The dataset and its ids, or how many there are, in words.
    pub datasets: String,
    /// Why it is read so, in words.
    pub reason: String,
    /// What to know before training on it.
    pub warnings: Vec<String>,
    /// Datasets that rows come from.
    pub n_datasets: usize,
    /// `contiguous`, or how the first dataset is stored otherwise (chunked, gzip, ...).
    pub storage: String,
    /// Usable rows.
    pub n_rows: usize,
    /// Ids: proteins in per-residue files, else rows.
    pub n_ids: usize,
    /// Width of a row.
    pub d_in: usize,
    /// Type of the values.
    pub dtype: Dtype,
    /// The first five ids.
    pub first_ids: Vec<String>,
    /// Size of all files.
    pub file_bytes: u64,
    /// Memory that the usable values take.
    pub value_bytes: usize,
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Mean of all values.
    pub mean: f64,
    /// Standard deviation of all values.
    pub std: f64,
    /// Share of the rows' squared norm that is their mean row's, |mean|^2 / mean |row|^2: near 1, all rows are nearly alike
    /// and a model without a pre-bias learns the mean first.
    pub mean_share: f64,
    /// The largest |mean| / standard deviation of a column that varies: columns far off zero predict dead latents
    /// (arXiv 2605.31518).
    pub outlier_severity: f64,
    /// The column of that, counted from 0.
    pub outlier_column: usize,
    /// Columns whose values are all the same.
    pub constant_columns: usize,
    /// Rows whose values are all the same.
    pub constant_rows: usize,
    /// Rows that hold only zeros.
    pub zero_rows: usize,
    /// Rows whose values are those of a row before.
    pub duplicate_rows: usize,
    /// Rows with a NaN, an infinity, or a value too large for float32.
    pub non_finite_rows: usize,
    /// Rows whose id was seen before.
    pub duplicate_id_rows: usize,
    /// Rows whose id is empty or holds a control character, such as a tab.
    pub bad_id_rows: usize,
    /// The first bad row of each kind.
    pub examples: Vec<String>,
}

/// Reads `path`, a file or a folder of them, and reports what it holds; bad rows are reported, not refused.
///
/// # Errors
/// As [`Embeddings::load`], but for those about single rows.
pub fn inspect(path: &Path, options: &LoadOptions) -> Result<FileSummary> {
    let found = data_files(&[path.to_owned()])?;
    let plans = found.paths.iter().map(|path| plan(path, options)).collect::<Result<Vec<_>>>()?;
    let Some(first) = plans.first() else {
        return Err(Error::data(path, "", "holds no data files; name one"));
    };
    let (layout, reason) = (first.layout.name(), first.reason.clone());
    let storage =
        first.pieces.first().map_or_else(String::new, |piece| first.file.storage(&first.datasets[piece.at]));
    let datasets = match &plans[..] {
        [one] => one.dataset_text.clone(),
        all => format!("{} files, the first with {}", all.len(), first.dataset_text),
    };
    let n_files = plans.len();
    let n_datasets = plans.iter().map(|plan| plan.pieces.len()).sum();
    let file_bytes = plans.iter().map(|plan| plan.file.len).sum();
    let warnings = warnings(found.warnings, &plans);
    // Rows that would take most of the memory stay in their files.
    let mut data = within(plans, BadRows::SkipAll, half_of_free())?;
    data.warn_of(warnings);
    data.look_through(&[], vec![], &mut |_, _| {})?;
    let values = Moments::of(&data)?;
    let (outlier_severity, outlier_column) = values.outlier();
    let skipped = data.skipped();
    Ok(FileSummary {
        path: path.display().to_string(),
        n_files,
        layout,
        datasets,
        reason,
        warnings: data.warnings().to_vec(),
        n_datasets,
        storage,
        n_rows: data.n_rows(),
        n_ids: data.index().n_groups(),
        d_in: data.d_in(),
        dtype: data.dtype(),
        first_ids: (0..data.index().n_groups().min(5))
            .map(|group| data.index().group_id(group).to_owned())
            .collect(),
        file_bytes,
        value_bytes: data.n_rows() * data.d_in() * data.dtype().size(),
        min: values.min,
        max: values.max,
        mean: values.mean(),
        std: values.std(),
        mean_share: values.mean_share(),
        outlier_severity,
        outlier_column,
        constant_columns: values.constant_columns(),
        constant_rows: values.constant_rows,
        zero_rows: data.zero_rows(),
        duplicate_rows: values.duplicate_rows,
        non_finite_rows: skipped.non_finite,
        duplicate_id_rows: skipped.duplicate,
        bad_id_rows: skipped.bad_id,
        examples: skipped.examples.clone(),
    })
}

/// Bytes of rows that are looked at together.
const READ_BYTES: usize = 16 << 20;

/// What one pass over the rows gives.
struct Moments {
    min: f32,
    max: f32,
    n_rows: usize,
    /// Sums of each column's values and of their squares, less the first row's so that little is lost where columns are
    /// far off zero.
    sums: Vec<(f64, f64)>,
    first: Vec<f64>,
    constant_rows: usize,
    duplicate_rows: usize,
}

impl Moments {
    fn of(data: &Embeddings) -> Result<Self> {
        let d_in = data.d_in();
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        let mut sums = vec![(0.0, 0.0); d_in];
        let mut first = vec![0.0; d_in];
        let mut constant_rows = 0;
        let mut seen = HashSet::new();
        let step = (READ_BYTES / (4 * d_in).max(1)).max(1);
        for start in (0..data.n_rows()).step_by(step) {
            interrupt::check()?;
            let rows: Vec<u32> = (start..data.n_rows().min(start + step)).map(|row| row as u32).collect();
            let mut values = vec![0.0f32; rows.len() * d_in];
            data.read(&rows, &mut values)?;
            if start == 0 {
                first = values[..d_in].iter().map(|&value| f64::from(value)).collect();
            }
            for row in values.chunks_exact(d_in) {
                let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
                for ((&value, sums), first) in row.iter().zip(&mut sums).zip(&first) {
                    low = low.min(value);
                    high = high.max(value);
                    let off = f64::from(value) - first;
                    sums.0 += off;
                    sums.1 += off * off;
                }
                constant_rows += usize::from(low == high);
                (min, max) = (min.min(low), max.max(high));
                // 128 bits: no two rows of any data set fall together by chance.
                seen.insert(xxhash_rust::xxh3::xxh3_128(bytemuck::cast_slice(row)));
            }
        }
        // JSON has no infinities: a file without usable rows has zeros here.
        if data.n_rows() == 0 {
            (min, max) = (0.0, 0.0);
        }
        let duplicate_rows = data.n_rows() - seen.len();
        Ok(Self { min, max, n_rows: data.n_rows(), sums, first, constant_rows, duplicate_rows })
    }

    /// Mean and variance of each column.
    fn columns(&self) -> impl Iterator<Item = (f64, f64)> {
        let n = self.n_rows.max(1) as f64;
        let column = move |(&(sum, squares), first): (&(f64, f64), &f64)| {
            let off: f64 = sum / n;
            (first + off, (squares / n - off * off).max(0.0))
        };
        self.sums.iter().zip(&self.first).map(column)
    }

    fn mean(&self) -> f64 {
        self.columns().map(|(mean, _)| mean).sum::<f64>() / self.sums.len().max(1) as f64
    }

    fn std(&self) -> f64 {
        let mean = self.mean();
        let squares = self.columns().map(|(of, variance)| variance + (of - mean) * (of - mean)).sum::<f64>();
        (squares / self.sums.len().max(1) as f64).sqrt()
    }

    fn mean_share(&self) -> f64 {
        let (mut of_mean, mut of_rows) = (0.0, 0.0);
        for (mean, variance) in self.columns() {
            of_mean += mean * mean;
            of_rows += mean * mean + variance;
        }
        if of_rows > 0.0 { of_mean / of_rows } else { 0.0 }
    }

    /// The largest |mean| / standard deviation and its column.
    fn outlier(&self) -> (f64, usize) {
        let severity =
            |(mean, variance): (f64, f64)| if variance > 0.0 { mean.abs() / variance.sqrt() } else { 0.0 };
        let all = self.columns().map(severity).enumerate();
        all.fold((0.0, 0), |most, (at, severity)| if severity > most.0 { (severity, at) } else { most })
    }

    fn constant_columns(&self) -> usize {
        if self.n_rows < 2 { 0 } else { self.sums.iter().filter(|sums| sums.1 == 0.0).count() }
    }
}
