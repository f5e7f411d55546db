//! Rows that a program has in memory, such as an array of Python, as [`Embeddings`].

use std::collections::HashMap;
use std::path::Path;

use super::BadRows;
use super::embeddings::Embeddings;
use super::load::{
    GIVEN_ID_HINT, GIVEN_SKIP_HINT, Judge, Reason, holds_no_rows, loaded, non_finite, unusable,
};
use crate::error::{Error, Result};
use crate::rows::{RowIndex, Values};

/// What messages call such rows.
pub(crate) const GIVEN: &str = "the array";

/// Rows in memory.
pub struct Given {
    /// Their values, row by row.
    pub values: Values,
    /// Width of a row, D.
    pub d_in: usize,
    /// An id for each; without them the rows are numbered from 0.
    pub ids: Option<Vec<String>>,
    /// What each row belongs to, where such rows are kept together in a split.
    pub groups: Option<Vec<String>>,
}

impl Embeddings {
    /// Rows that are in memory already; their values stay where they are unless rows are dropped.
    ///
    /// # Errors
    /// As [`Embeddings::load`] for values and ids; ids or groups that are not as many as the rows.
    pub fn given(rows: Given, bad_rows: BadRows) -> Result<Self> {
        let Given { mut values, d_in, mut ids, mut groups } = rows;
        let n_values = values.bytes().len() / values.dtype().size();
        if n_values == 0 || d_in == 0 {
            return Err(wrong("", "has no values; give embeddings (N, D)"));
        }
        let n_rows = n_values / d_in;
        for (what, texts) in [("ids", &ids), ("groups", &groups)] {
            if let Some(n) = texts.as_ref().map(Vec::len).filter(|&n| n != n_rows) {
                return Err(Error::Usage(format!("{n} {what} for {n_rows} rows; give one for each row")));
            }
        }
        if u32::try_from(n_rows).is_err() {
            return Err(wrong("", format!("has {n_rows} rows, more than {} row numbers", u32::MAX)));
        }
        let mut judge = Judge::new(bad_rows);
        let mut keep = vec![true; n_rows];
        check_ids(ids.as_deref().unwrap_or_default(), &mut keep, &mut judge)?;
        for (row, column) in values.first_bad_columns(d_in) {
            if keep[row] {
                let what = non_finite(column, values.get(row * d_in + column));
                let error = || wrong(&format!("row {row}"), format!("{what}; {GIVEN_SKIP_HINT}"));
                judge.bad(Reason::NonFinite, 1, error)?;
                keep[row] = false;
            }
        }
        judge.check_share(Path::new(GIVEN), n_rows, "look at it")?;
        if keep.contains(&false) {
            values.retain_rows(d_in, &keep);
            ids = Some(match ids {
                Some(ids) => kept(ids, &keep),
                // Numbers are those of the array as it was given.
                None => (0..n_rows).filter(|&row| keep[row]).map(|row| row.to_string()).collect(),
            });
            groups = groups.map(|groups| kept(groups, &keep));
        }
        let ids = ids.unwrap_or_else(|| (0..n_rows).map(|row| row.to_string()).collect());
        if ids.is_empty() {
            return Err(holds_no_rows(Path::new(GIVEN), &judge.skipped));
        }
        loaded(values, d_in, RowIndex { clusters: groups, ..RowIndex::of_ids(ids) }, judge.skipped)
    }
}

fn wrong(place: &str, what: impl Into<String>) -> Error {
    Error::data(Path::new(GIVEN), place, what)
}

fn kept(texts: Vec<String>, keep: &[bool]) -> Vec<String> {
    texts.into_iter().zip(keep).filter(|(_, keep)| **keep).map(|(text, _)| text).collect()
}

/// Ids must be usable in tables and occur once.
fn check_ids(ids: &[String], keep: &mut [bool], judge: &mut Judge) -> Result<()> {
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(ids.len());
    for (row, id) in ids.iter().enumerate() {
        let place = format!("row {row}");
        let (reason, what) = if let Some(what) = unusable(id) {
            (Reason::BadId, what)
        } else if let Some(first) = seen.insert(id, row) {
            seen.insert(id, first);
            (Reason::Duplicate, format!("the id \"{id}\" was seen before, in row {first}"))
        } else {
            continue;
        };
        judge.bad(reason, 1, || wrong(&place, format!("{what}; {GIVEN_ID_HINT}")))?;
        keep[row] = false;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn given(ids: &[&str], values: Vec<f32>, bad_rows: BadRows) -> Result<Embeddings> {
        let ids = (!ids.is_empty()).then(|| ids.iter().map(|&id| id.to_owned()).collect());
        Embeddings::given(Given { values: Values::F32(values.into()), d_in: 2, ids, groups: None }, bad_rows)
    }

    #[test]
    fn rows_without_ids_are_numbered_as_they_were_given() {
        let rows = given(&[], vec![1.0; 6], BadRows::Stop).unwrap();
        assert_eq!(rows.index().row_id(2), "2");
        let mut values = vec![1.0; 24];
        values[3] = f32::NAN;
        let rows = given(&[], values, BadRows::Skip).unwrap();
        assert_eq!((rows.n_rows(), rows.index().row_id(1)), (11, "2".to_owned()));
        assert_eq!(rows.skipped().examples, ["the array: row 1: column 1 is NaN"]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let error = |ids: &[&str], values| given(ids, values, BadRows::Stop).unwrap_err().to_string();
        assert!(
            error(&["a", "b"], vec![1.0, 1.0, f32::INFINITY, 0.0])
                .starts_with("the array: row 1: column 0 is inf;")
        );
        assert!(error(&["a", "a"], vec![1.0; 4]).contains("row 1: the id \"a\" was seen before, in row 0;"));
        assert!(error(&["a", "b\t"], vec![1.0; 4]).contains("holds a tab"));
        assert!(error(&["a"], vec![1.0; 4]).starts_with("1 ids for 2 rows"));
        assert!(error(&[], vec![]).contains("has no values"));
        let none = given(&[], vec![f32::NAN; 4], BadRows::SkipAll).unwrap_err().to_string();
        assert!(none.contains("no usable row is left"), "{none}");
    }
}
