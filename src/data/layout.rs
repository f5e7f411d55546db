//! Decides what the rows of a file are.
//!
//! | found | layout | ids |
//! | --- | --- | --- |
//! | 1-D float datasets only | one vector an id | the last part of the path |
//! | several 2-D float datasets (1-D ones may be among them) | residues of each id | the last part of the path |
//! | one 2-D float dataset | a matrix | a 1-D string dataset of its length, else `<file stem>:<row>` |
//!
//! Where the last part of the path is the same in all datasets (`P12345/embedding`), the part before
//! it is taken; where ids would still collide within the file, all of them are the whole path.
//! Whatever could be read in two ways is an error that names the candidates and `--dataset`.

use std::path::Path;

use super::LoadOptions;
use super::h5::{Dataset, File, Kind};
use super::ids::{find_ids, ids_of_paths, last};
use super::kind::Stored;
use super::scan::scan;
use crate::error::{Error, Result};

/// Names of whole matrices: two of these in a file are two data sets, not two proteins.
const MATRIX_NAMES: [&str; 13] = [
    "embeddings",
    "embedding",
    "data",
    "x",
    "features",
    "train",
    "test",
    "val",
    "valid",
    "validation",
    "x_train",
    "x_test",
    "activations",
];

/// What the rows of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    VectorPerId,
    ResiduesPerId,
    Matrix,
}

impl Layout {
    pub fn name(self) -> &'static str {
        match self {
            Self::VectorPerId => "one vector per id",
            Self::ResiduesPerId => "residues per id",
            Self::Matrix => "matrix",
        }
    }
}

/// The ids of the rows of one dataset.
pub(super) enum Ids {
    /// One row, one id.
    One(String),
    /// All rows belong to this id.
    Residues(String),
    /// An id for each row.
    Rows(Vec<String>),
}

/// One dataset whose rows are used.
pub(super) struct Piece {
    pub dataset: Dataset,
    pub stored: Stored,
    pub n_rows: usize,
    pub width: u64,
    pub ids: Ids,
}

/// A file and what is to be read from it.
pub(super) struct Plan {
    pub file: File,
    pub layout: Layout,
    pub pieces: Vec<Piece>,
    /// The dataset, or how many there are, for people.
    pub dataset_text: String,
}

/// Opens `path` and decides what its rows are.
pub(super) fn plan(path: &Path, options: &LoadOptions) -> Result<Plan> {
    plan_of(File::open(path)?, options)
}

/// Decides what the rows of `file` are.
pub(super) fn plan_of(file: File, options: &LoadOptions) -> Result<Plan> {
    let name = options.dataset.as_deref().map(|name| name.trim_matches('/'));
    let (datasets, matrix) = match name {
        None => (scan(&file, "", true)?, None),
        Some("") => (scan(&file, "", true)?, None),
        Some(name) if file.is_group(name) => (scan(&file, name, true)?, None),
        Some(name) => {
            let group = name.rsplit_once('/').map_or("", |(group, _)| group);
            if !group.is_empty() && !file.is_group(group) {
                return Err(no_such(&file, name, &scan(&file, "", true)?));
            }
            let beside = scan(&file, group, false)?;
            match beside.iter().find(|d| d.path == name).cloned() {
                Some(dataset) => (beside, Some(dataset)),
                None => return Err(no_such(&file, name, &scan(&file, "", true)?)),
            }
        }
    };
    match matrix {
        Some(dataset) => named(file, dataset, &datasets),
        None => automatic(file, datasets, name.is_some()),
    }
}

fn no_such(file: &File, name: &str, datasets: &[Dataset]) -> Error {
    Error::data(
        &file.path,
        "",
        format!("holds no dataset or group \"{name}\"; name one of: {}", listed(datasets.iter())),
    )
}

/// The dataset that `--dataset` names.
fn named(file: File, dataset: Dataset, beside: &[Dataset]) -> Result<Plan> {
    check_float(&file, &dataset)?;
    match dataset.shape.len() {
        1 => per_id(file, vec![dataset]),
        2 => matrix(file, dataset, beside),
        _ => Err(wrong_rank(&file, &dataset)),
    }
}

fn automatic(file: File, datasets: Vec<Dataset>, chosen: bool) -> Result<Plan> {
    let rank = |n: usize| floats(&datasets).filter(move |d| d.shape.len() == n);
    let (n_vectors, n_matrices) = (rank(1).count(), rank(2).count());
    if let Some(odd) = datasets.iter().find(|d| matches!(d.kind, Kind::OddFloat(_))) {
        check_float(&file, odd)?;
    }
    if let Some(cube) = floats(&datasets).find(|d| d.shape.len() > 2) {
        if n_vectors + n_matrices == 0 {
            return Err(wrong_rank(&file, cube));
        }
        return Err(ambiguous(&file, "datasets of 1 or 2 axes beside others of more", &datasets));
    }
    if n_vectors + n_matrices == 0 {
        let what = if datasets.is_empty() {
            "holds no datasets; give a file of embeddings".to_owned()
        } else {
            format!(
                "holds no float datasets with axes, only {}; give a file of embeddings",
                listed(datasets.iter())
            )
        };
        return Err(Error::data(&file.path, "", what));
    }
    if n_matrices == 1 {
        let dataset = rank(2).next().cloned();
        // A vector an id is the reading if nearly all are vectors as wide as the one (1, D) dataset.
        let stray = dataset
            .as_ref()
            .is_some_and(|m| m.shape[0] == 1 && n_vectors > 0 && rank(1).all(|v| v.shape[0] == m.shape[1]));
        if let Some(dataset) = dataset.filter(|_| !stray) {
            return matrix(file, dataset, &datasets);
        }
    }
    if n_matrices > 1 && !chosen {
        let is_name = |d: &Dataset| MATRIX_NAMES.contains(&last(&d.path).to_lowercase().as_str());
        let at_root = |d: &Dataset| !d.path.contains('/');
        let texts = datasets.iter().any(|d| d.kind == Kind::Text && d.shape.len() == 1);
        if texts || rank(2).any(|d| at_root(d) && is_name(d)) {
            return Err(ambiguous(&file, "several matrices", &datasets));
        }
    }
    let used = datasets.into_iter().filter(|d| matches!(d.kind, Kind::Float(_)) && !d.shape.is_empty());
    let used = used.collect();
    per_id(file, used)
}

fn floats(datasets: &[Dataset]) -> impl Iterator<Item = &Dataset> {
    datasets.iter().filter(|d| matches!(d.kind, Kind::Float(_)))
}

fn check_float(file: &File, dataset: &Dataset) -> Result<Stored> {
    let holds = match &dataset.kind {
        Kind::Float(stored) => return Ok(*stored),
        Kind::Text => "text",
        Kind::OddFloat(what) => what.as_str(),
        Kind::Other(what) => what,
    };
    Err(Error::data(
        &file.path,
        place(dataset),
        format!(
            "holds {holds}; float16, bfloat16, float32 or float64 is needed: convert it, or name another with --dataset"
        ),
    ))
}

fn wrong_rank(file: &File, dataset: &Dataset) -> Error {
    Error::data(
        &file.path,
        place(dataset),
        format!(
            "has the shape {:?}; rows need 1 or 2 axes: store it as (rows, width), or name another with --dataset",
            dataset.shape
        ),
    )
}

fn ambiguous(file: &File, what: &str, datasets: &[Dataset]) -> Error {
    let candidates = floats(datasets).filter(|d| !d.shape.is_empty());
    Error::data(
        &file.path,
        "",
        format!("holds {what}; choose with --dataset NAME from: {}", listed(candidates)),
    )
}

/// `"/a" (3, 4), "/b" (5, 4), ... (12 in all)`.
fn listed<'a>(datasets: impl Iterator<Item = &'a Dataset>) -> String {
    const SHOWN: usize = 6;
    let all: Vec<String> = datasets
        .map(|d| {
            let axes: Vec<String> = d.shape.iter().map(u64::to_string).collect();
            format!("\"/{}\" ({})", d.path, axes.join(", "))
        })
        .collect();
    let more = if all.len() > SHOWN { format!(", ... ({} in all)", all.len()) } else { String::new() };
    format!("{}{more}", all[..all.len().min(SHOWN)].join(", "))
}

/// `dataset "/x"`, as errors write it.
pub(super) fn place(dataset: &Dataset) -> String {
    format!("dataset \"/{}\"", dataset.path)
}

/// One id a dataset.
fn per_id(file: File, datasets: Vec<Dataset>) -> Result<Plan> {
    let layout =
        if datasets.iter().any(|d| d.shape.len() == 2) { Layout::ResiduesPerId } else { Layout::VectorPerId };
    let dataset_text = match &datasets[..] {
        [one] => place(one),
        all => format!("{} datasets", all.len()),
    };
    let ids = ids_of_paths(&datasets);
    let mut pieces = Vec::with_capacity(datasets.len());
    for (dataset, id) in datasets.into_iter().zip(ids) {
        let stored = check_float(&file, &dataset)?;
        let (n_rows, width, ids) = match dataset.shape[..] {
            [width] => (1, width, Ids::One(id)),
            [rows, width] => (to_usize(&file, &dataset, rows)?, width, Ids::Residues(id)),
            _ => return Err(wrong_rank(&file, &dataset)),
        };
        pieces.push(Piece { dataset, stored, n_rows, width, ids });
    }
    Ok(Plan { file, layout, pieces, dataset_text })
}

fn to_usize(file: &File, dataset: &Dataset, n: u64) -> Result<usize> {
    // Row numbers are kept in 32 bits.
    u32::try_from(n).map(|n| n as usize).map_err(|_| {
        Error::data(
            &file.path,
            place(dataset),
            format!("has {n} rows; at most {} can be used: take a part of it", u32::MAX),
        )
    })
}

/// A matrix with ids beside it, or without.
fn matrix(file: File, dataset: Dataset, datasets: &[Dataset]) -> Result<Plan> {
    let stored = check_float(&file, &dataset)?;
    let (rows, width) = (dataset.shape[0], dataset.shape[1]);
    let n_rows = to_usize(&file, &dataset, rows)?;
    let (ids, dataset_text) = match find_ids(&file, &dataset, datasets)? {
        Some(found) => {
            let texts = file.read_strings(found)?;
            let ids = texts.into_iter().enumerate().map(|(row, text)| {
                String::from_utf8(text).map_err(|_| {
                    Error::data(
                        &file.path,
                        format!("{}, row {row}", place(found)),
                        "the id is not UTF-8; write the ids again as UTF-8",
                    )
                })
            });
            let text = format!("{}, ids in \"/{}\"", place(&dataset), found.path);
            (ids.collect::<Result<Vec<_>>>()?, text)
        }
        None => {
            // Row numbers alone would collide and change when files are added.
            let stem = file.path.file_stem().unwrap_or_default().to_string_lossy();
            let ids = (0..n_rows).map(|row| format!("{stem}:{row}")).collect();
            (ids, format!("{}, no ids", place(&dataset)))
        }
    };
    let ids = Ids::Rows(ids);
    Ok(Plan {
        file,
        layout: Layout::Matrix,
        pieces: vec![Piece { dataset, stored, n_rows, width, ids }],
        dataset_text,
    })
}
