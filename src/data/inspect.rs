//! What a data file holds, for people and scripts.

use std::path::Path;

use super::load::assemble;
use super::reading::plan;
use super::{BadRows, LoadOptions};
use crate::error::Result;
use crate::interrupt;
use crate::rows::Dtype;

/// A summary of a data file. Values are over the usable rows, as float32.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FileSummary {
    /// The file as named.
    pub path: String,
    /// `one vector per id`, `residues per id` or `matrix`.
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
    /// Size of the file.
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
    /// Rows whose values are all the same.
    pub constant_rows: usize,
    /// Rows that hold only zeros.
    pub zero_rows: usize,
    /// Rows with a NaN, an infinity, or a value too large for float32.
    pub non_finite_rows: usize,
    /// Rows whose id was seen before.
    pub duplicate_id_rows: usize,
    /// Rows whose id is empty or holds a control character, such as a tab.
    pub bad_id_rows: usize,
    /// The first bad row of each kind.
    pub examples: Vec<String>,
}

/// Reads `path` and reports what it holds; bad rows are reported, not refused.
pub fn inspect(path: &Path, options: &LoadOptions) -> Result<FileSummary> {
    let plan = plan(path, options)?;
    let (layout, datasets) = (plan.layout.name(), plan.dataset_text.clone());
    let (n_datasets, file_bytes) = (plan.pieces.len(), plan.file.len);
    let storage =
        plan.pieces.first().map_or_else(String::new, |piece| storage(&plan.file.hdf, &piece.dataset.path));
    let (reason, warnings) = (plan.reason.clone(), plan.warnings.clone());
    let mut data = assemble(vec![plan], BadRows::SkipAll)?;
    data.warn_of(warnings);

    let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
    let (mut sum, mut squares) = (0.0f64, 0.0f64);
    let mut constant_rows = 0;
    let mut row = vec![0.0f32; data.d_in()];
    for index in 0..data.n_rows() {
        interrupt::check()?;
        data.row_into(index, &mut row);
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for &value in &row {
            low = low.min(value);
            high = high.max(value);
            sum += f64::from(value);
            squares += f64::from(value) * f64::from(value);
        }
        constant_rows += usize::from(low == high);
        (min, max) = (min.min(low), max.max(high));
    }
    let n = (data.n_rows() * data.d_in()).max(1) as f64;
    let mean = sum / n;
    // JSON has no infinities: a file without usable rows has zeros here.
    if data.n_rows() == 0 {
        (min, max) = (0.0, 0.0);
    }
    let skipped = data.skipped();
    Ok(FileSummary {
        path: path.display().to_string(),
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
        value_bytes: data.bytes(),
        min,
        max,
        mean,
        std: (squares / n - mean * mean).max(0.0).sqrt(),
        constant_rows,
        zero_rows: data.zero_rows(),
        non_finite_rows: skipped.non_finite,
        duplicate_id_rows: skipped.duplicate,
        bad_id_rows: skipped.bad_id,
        examples: skipped.examples.clone(),
    })
}

fn storage(file: &hdf5::File, path: &str) -> String {
    let Ok(dataset) = file.dataset(path) else {
        return String::new();
    };
    let mut text = match dataset.chunk() {
        Some(chunk) => {
            let axes: Vec<String> = chunk.iter().map(usize::to_string).collect();
            format!("chunked ({})", axes.join(", "))
        }
        None if dataset.offset().is_some() => "contiguous".to_owned(),
        None => "compact, external or virtual".to_owned(),
    };
    for filter in dataset.filters() {
        text.push_str(match filter {
            hdf5::filters::Filter::Deflate(_) => ", gzip",
            hdf5::filters::Filter::Shuffle => ", shuffle",
            hdf5::filters::Filter::Fletcher32 => ", checksum",
            _ => ", filtered",
        });
    }
    text
}
