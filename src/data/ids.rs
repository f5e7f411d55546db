//! Where the ids of rows come from: the paths of datasets, or strings beside a matrix.

use std::collections::HashSet;

use super::h5::{Dataset, File, Kind};
use super::layout::place;
use crate::error::{Error, Result};

/// Names under which ids are looked for beside a matrix, best first.
const ID_NAMES: [&str; 14] = [
    "ids",
    "id",
    "accessions",
    "accession",
    "protein_ids",
    "protein_id",
    "uniprot_ids",
    "entries",
    "entry",
    "names",
    "name",
    "keys",
    "key",
    "index",
];
/// String datasets that are as long as the matrix and still no ids.
const NOT_IDS: [&str; 9] =
    ["label", "labels", "class", "classes", "sequence", "sequences", "split", "splits", "columns"];
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

/// One id a dataset: the last part of its path, or what `layout` says where those collide.
pub(super) fn ids_of_paths(datasets: &[Dataset]) -> Vec<String> {
    let lasts: Vec<&str> = datasets.iter().map(|d| last(&d.path)).collect();
    let distinct = |names: &[&str]| names.iter().collect::<HashSet<_>>().len() == names.len();
    let pick = if distinct(&lasts) {
        lasts
    } else {
        let parents: Vec<&str> =
            datasets.iter().map(|d| last(d.path.rsplit_once('/').map_or("", |(parent, _)| parent))).collect();
        let same = lasts.windows(2).all(|pair| pair[0] == pair[1]);
        if same && distinct(&parents) { parents } else { datasets.iter().map(|d| d.path.as_str()).collect() }
    };
    pick.into_iter().map(str::to_owned).collect()
}

/// The string dataset that names the rows: by its name, else the only one of the right length;
/// those in the matrix's own group come first.
pub(super) fn find_ids<'a>(file: &File, matrix: &Dataset, all: &'a [Dataset]) -> Result<Option<&'a Dataset>> {
    let group = |d: &Dataset| d.path.rsplit_once('/').map(|(group, _)| group.to_owned());
    let texts = || all.iter().filter(|d| d.kind == Kind::Text && d.shape.len() == 1);
    let own: Vec<&Dataset> = texts().filter(|d| group(d) == group(matrix)).collect();
    for texts in [own, texts().collect()] {
        let fitting: Vec<&Dataset> =
            texts.iter().copied().filter(|d| d.shape[0] == matrix.shape[0]).collect();
        let named = |name: &&str| fitting.iter().copied().find(|d| last(&d.path).eq_ignore_ascii_case(name));
        if let Some(found) = ID_NAMES.iter().find_map(named) {
            return Ok(Some(found));
        }
        // Ids of another length mean that matrix and ids do not belong together.
        if let Some(wrong) =
            texts.iter().find(|d| ID_NAMES[..8].contains(&last(&d.path).to_lowercase().as_str()))
        {
            return Err(Error::data(
                &file.path,
                place(wrong),
                format!(
                    "has {} ids for the {} rows of \"/{}\"; write one id per row",
                    wrong.shape[0], matrix.shape[0], matrix.path
                ),
            ));
        }
        let mut others =
            fitting.into_iter().filter(|d| !NOT_IDS.contains(&last(&d.path).to_lowercase().as_str()));
        if let (Some(only), None) = (others.next(), others.next()) {
            return Ok(Some(only));
        }
    }
    Ok(None)
}
