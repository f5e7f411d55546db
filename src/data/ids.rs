//! The ids of a matrix: strings or integers beside it.

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::file::{Dataset, File, Kind, place};
use super::scan::group_of;
use crate::error::{Error, Result};

/// Names under which ids are looked for beside a matrix, best first.
const ID_NAMES: [&str; 28] = [
    "ids",
    "id",
    "accessions",
    "accession",
    "protein_ids",
    "protein_id",
    "uniprot_ids",
    "uniprot_id",
    "proteins",
    "protein",
    "entries",
    "entry",
    "identifiers",
    "identifier",
    "sample_ids",
    "sample_id",
    "cell_ids",
    "barcodes",
    "obs_names",
    "genes",
    "names",
    "name",
    "keys",
    "key",
    "headers",
    "index",
    "_index",
    "axis1",
];
/// Of [`ID_NAMES`] those that can mean nothing else.
const SURE: usize = 8;
/// String datasets that are as long as the matrix and still no ids.
const NOT_IDS: [&str; 13] = [
    "label",
    "labels",
    "class",
    "classes",
    "sequence",
    "sequences",
    "seq",
    "seqs",
    "split",
    "splits",
    "columns",
    "text",
    "texts",
];
/// Longest text that is taken for an id because it is unique.
const LONGEST: usize = 100;

/// The last part of a path.
pub(super) fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The first control character in a text, in words: a table with it in a field is cut or garbled.
pub(crate) fn first_control(text: &str) -> Option<String> {
    let found = text.chars().find(|c| c.is_control())?;
    let name = match found {
        '\t' => "a tab",
        '\n' => "a line feed",
        '\r' => "a carriage return",
        _ => "a control character",
    };
    Some(format!("{name} (U+{:04X})", found as u32))
}

/// The ids found beside a matrix.
pub(super) struct Found {
    /// One for each row.
    pub ids: Vec<String>,
    /// Where they are, for people.
    pub from: String,
}

/// What is beside a matrix that could name its rows.
pub(super) enum Beside {
    Ids(Found),
    /// Nothing does; the datasets of texts that are as long and were passed over.
    None {
        passed_over: Vec<String>,
    },
}

/// Values of a dataset as ids: texts, or integers in decimal; `None` for other kinds.
pub(super) fn read_ids(file: &File, dataset: &Dataset) -> Result<Option<Vec<String>>> {
    match dataset.kind {
        Kind::Text => {
            let texts = file.read_strings(dataset)?.into_iter().enumerate().map(|(row, text)| {
                String::from_utf8(text).map_err(|_| {
                    let at = format!("{}, row {row}", place(dataset));
                    Error::data(&file.path, at, "the id is not UTF-8; write the ids again as UTF-8")
                })
            });
            texts.collect::<Result<Vec<_>>>().map(Some)
        }
        Kind::Integer { .. } => Ok(Some(file.read_integers(dataset)?.iter().map(i64::to_string).collect())),
        _ => Ok(None),
    }
}

/// Whether a dataset holds one value for each of `n` rows.
pub(super) fn is_column(dataset: &Dataset, n: u64) -> bool {
    let long: Vec<u64> = dataset.shape.iter().copied().filter(|&axis| axis != 1).collect();
    let axes = (1..=2).contains(&dataset.shape.len());
    axes && if n == 1 { long.is_empty() } else { long == [n] }
}

/// Looks for the ids of the rows of `matrix`, which has `n`: by name, else the only texts that are as long and all
/// different; those in the matrix's own group come first, then those of the groups above it, then all.
pub(super) fn find(file: &File, matrix: &Dataset, n: u64, all: &[Dataset]) -> Result<Beside> {
    let name = |d: &Dataset| last(&d.path).to_lowercase();
    let sure = |d: &Dataset| ID_NAMES[..SURE].contains(&name(d).as_str());
    let rank_of = |d: &Dataset| {
        let name = name(d);
        let known = ID_NAMES.iter().position(|known| *known == name);
        known.or((name.ends_with("_id") || name.ends_with("_ids")).then_some(ID_NAMES.len()))
    };
    let is_id_kind =
        |d: &&Dataset| d.path != matrix.path && matches!(d.kind, Kind::Text | Kind::Integer { .. });
    let mut scopes = vec![group_of(&matrix.path).to_owned()];
    while let Some(scope) = scopes.last().filter(|scope| !scope.is_empty()) {
        scopes.push(group_of(scope).to_owned());
    }
    let mut passed_over = vec![];
    for scope in scopes.iter().map(Some).chain([None]) {
        let inside = |d: &&Dataset| scope.is_none_or(|scope| group_of(&d.path) == scope);
        let here: Vec<&Dataset> = all.iter().filter(is_id_kind).filter(inside).collect();
        let mut named: Vec<(usize, &Dataset)> =
            here.iter().filter(|d| is_column(d, n)).filter_map(|d| Some((rank_of(d)?, *d))).collect();
        named.sort_by_key(|(rank, _)| *rank);
        for (_, dataset) in named {
            let path = format!("/{}", dataset.path);
            // The last scope holds those of the others.
            if passed_over.contains(&path) {
                continue;
            }
            if let Some(ids) = read_ids(file, dataset)? {
                // Labels and patients repeat; a few ids that do are a fault of the file that is reported.
                let repeat = n_repeated(&ids);
                if repeat * if sure(dataset) { 2 } else { 10 } <= ids.len() {
                    return Ok(Beside::Ids(Found { ids, from: path }));
                }
                passed_over.push(path);
            }
        }
        // Ids of another length mean that matrix and ids do not belong together.
        let wrong = here.iter().find(|d| sure(d) && d.shape.len() == 1 && d.shape[0] != n);
        if let (Some(wrong), Some(_)) = (wrong, scope) {
            return Err(unlike(file, matrix, n, wrong));
        }
        let mut unique = vec![];
        for dataset in here.iter().filter(|d| d.kind == Kind::Text && is_column(d, n) && rank_of(d).is_none())
        {
            let path = format!("/{}", dataset.path);
            if passed_over.contains(&path) {
                continue;
            }
            let usable = !NOT_IDS.contains(&name(dataset).as_str());
            match read_ids(file, dataset)?.filter(|_| usable) {
                Some(ids) if are_ids(&ids) => unique.push(Found { ids, from: path }),
                _ => passed_over.push(path),
            }
        }
        if unique.len() == 1 {
            return Ok(Beside::Ids(unique.remove(0)));
        }
        passed_over.extend(unique.into_iter().map(|found| found.from));
    }
    let attribute = file.texts_of_attribute(&matrix.path, "ids")?.filter(|ids| ids.len() as u64 == n);
    Ok(match attribute {
        Some(ids) => Beside::Ids(Found { ids, from: "the attribute ids".to_owned() }),
        None => Beside::None { passed_over },
    })
}

/// Whether texts are all different, short, and on one line each.
fn are_ids(texts: &[String]) -> bool {
    let usable = |text: &String| !text.is_empty() && text.len() <= LONGEST && first_control(text).is_none();
    texts.iter().all(usable) && n_repeated(texts) == 0
}

/// How many of `texts` came before. Sorted hashes take a third of the time of a set of texts.
fn n_repeated(texts: &[String]) -> usize {
    n_equal(texts.iter().map(|text| xxh3_64(text.as_bytes())).collect())
}

/// How many of `hashes` are there already.
pub(super) fn n_equal(mut hashes: Vec<u64>) -> usize {
    hashes.par_sort_unstable();
    hashes.windows(2).filter(|two| two[0] == two[1]).count()
}

fn unlike(file: &File, matrix: &Dataset, n: u64, ids: &Dataset) -> Error {
    let what = if matrix.shape.len() == 2 && ids.shape[0] == matrix.shape[1] {
        format!(
            "has {} ids, and \"/{}\" is {} by {}: it looks transposed; add --transpose to read its columns as rows",
            ids.shape[0], matrix.path, matrix.shape[0], matrix.shape[1]
        )
    } else {
        format!(
            "has {} ids for the {n} rows of \"/{}\"; write one id per row, or number the rows with --ids row",
            ids.shape[0], matrix.path
        )
    };
    Error::data(&file.path, place(ids), what)
}
