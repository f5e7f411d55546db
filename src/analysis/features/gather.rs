//! The codes of all rows in memory, by latent.

use crate::analysis::codes::{self, RowNames};
use crate::analysis::{Source, load_model};
use crate::backend::Codes;
use crate::error::{Error, Result};
use crate::model::Params;
use crate::model::file::ModelMeta;
use crate::rows::Part;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

/// The codes of N rows as M columns (compressed sparse columns): latent j owns the entries
/// `indptr[j] .. indptr[j + 1]`, by rising row. Takes 8 bytes an active latent, twice that while it is made.
#[derive(Debug, Clone, Default)]
pub struct ByLatent {
    /// Number of rows, N.
    pub n_rows: usize,
    /// Where each latent begins, and the number of entries at the end (M + 1 values).
    pub indptr: Vec<u64>,
    /// Row of each entry.
    pub rows: Vec<u32>,
    /// Activation of each entry, above 0.
    pub values: Vec<f32>,
}

impl ByLatent {
    /// Of codes by row.
    pub fn new(codes: &Codes, n_latents: usize) -> Self {
        let mut indptr = vec![0u64; n_latents + 1];
        for &latent in &codes.indices {
            indptr[latent as usize + 1] += 1;
        }
        for j in 0..n_latents {
            indptr[j + 1] += indptr[j];
        }
        let mut next = indptr.clone();
        let mut rows = vec![0; codes.indices.len()];
        let mut values = vec![0.0; codes.indices.len()];
        for row in 0..codes.n_rows() {
            let (latents, activations) = codes.row(row);
            for (&latent, &value) in latents.iter().zip(activations) {
                let place = &mut next[latent as usize];
                rows[*place as usize] = row as u32;
                values[*place as usize] = value;
                *place += 1;
            }
        }
        Self { n_rows: codes.n_rows(), indptr, rows, values }
    }

    /// Number of latents, M.
    pub fn n_latents(&self) -> usize {
        self.indptr.len() - 1
    }

    /// Rows and activations of latent `j`.
    ///
    /// # Panics
    /// If `j` is not a latent.
    pub fn latent(&self, j: usize) -> (&[u32], &[f32]) {
        let range = self.indptr[j] as usize..self.indptr[j + 1] as usize;
        (&self.rows[range.clone()], &self.values[range])
    }
}

/// Ids of rows in memory.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Group of each row.
    pub group_of: Vec<u32>,
    /// Ids of groups: what the split keeps together.
    pub group_ids: Vec<String>,
    /// Id of each row where it is not that of its group.
    own: Vec<Option<Box<str>>>,
    numbers: HashMap<String, u32>,
}

impl Names {
    /// Adds a row.
    pub fn push(&mut self, id: &str, group: &str) {
        // Rows of a group mostly follow one another.
        let last = self.group_of.last().copied().filter(|&g| self.group_ids[g as usize] == group);
        let number = last.or_else(|| self.numbers.get(group).copied()).unwrap_or_else(|| {
            let number = self.group_ids.len() as u32;
            self.group_ids.push(group.to_owned());
            self.numbers.insert(group.to_owned(), number);
            number
        });
        self.group_of.push(number);
        self.own.push((id != group).then(|| id.into()));
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.group_of.len()
    }

    /// The id of a group.
    pub fn group_id(&self, row: usize) -> &str {
        &self.group_ids[self.group_of[row] as usize]
    }

    /// The id of a row: `id:residue` in per-residue files.
    pub fn row_id(&self, row: usize) -> &str {
        self.own[row].as_deref().unwrap_or(self.group_id(row))
    }

    /// The id of a row where it is another than that of its group.
    pub fn own_id(&self, row: usize) -> Option<&str> {
        self.own[row].as_deref()
    }

    /// Whether some id has several rows.
    pub fn grouped(&self) -> bool {
        self.group_ids.len() < self.n_rows()
    }
}

/// Rows, their codes by latent, and the model.
pub struct Gathered {
    /// The model's tensors.
    pub params: Params,
    /// What is known of it.
    pub meta: ModelMeta,
    /// Ids of the rows.
    pub names: Names,
    /// Codes by latent.
    pub codes: ByLatent,
    /// Bad rows that were dropped.
    pub skipped_rows: usize,
    /// Rows that are in the split by the hash of their ids alone.
    pub hashed_rows: u64,
}

/// Encodes the rows of a split (`None` is all rows) into memory. With `pool` an id's rows become one, in which a latent
/// has the largest activation that it has in any of them.
///
/// # Errors
/// As [`codes::walk`]; more than 2^32 - 1 rows.
pub fn gather(source: &Source, split: Option<Part>, pool: bool, stop: &AtomicBool) -> Result<Gathered> {
    let (params, meta) = load_model(&source.model)?;
    let mut names = Names::default();
    let mut all = Codes::default();
    let take = |rows: &RowNames<'_>, codes: &Codes| {
        if names.n_rows() + rows.ids.len() > u32::MAX as usize {
            return Err(Error::Usage(
                "more than 4,294,967,295 rows; give fewer files, or one --split of them".into(),
            ));
        }
        for (i, (id, group)) in rows.ids.iter().zip(&rows.groups).enumerate() {
            names.push(id, group);
            let (latents, values) = codes.row(i);
            // Of signed codes the magnitude.
            all.push_row(latents.iter().copied().zip(values.iter().map(|v| v.abs())), true);
        }
        Ok(())
    };
    let walked = codes::walk(source, (params.clone(), &meta), split, stop, take)?;
    if pool {
        (names, all) = pooled(&names, &all);
    }
    let codes = ByLatent::new(&all, meta.architecture.n_latents);
    let (skipped_rows, hashed_rows) = (walked.skipped_rows, walked.hashed_rows);
    Ok(Gathered { params, meta, names, codes, skipped_rows, hashed_rows })
}

/// One row a group: the largest activation of each latent.
fn pooled(names: &Names, codes: &Codes) -> (Names, Codes) {
    let mut rows_of: Vec<Vec<u32>> = vec![vec![]; names.group_ids.len()];
    for (row, &group) in names.group_of.iter().enumerate() {
        rows_of[group as usize].push(row as u32);
    }
    let (mut out, mut pooled) = (Names::default(), Codes::default());
    for (id, rows) in names.group_ids.iter().zip(rows_of) {
        let mut entries: Vec<(u32, f32)> = vec![];
        for row in rows {
            let (latents, values) = codes.row(row as usize);
            entries.extend(latents.iter().copied().zip(values.iter().copied()));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        entries.dedup_by_key(|(latent, _)| *latent);
        pooled.push_row(entries, true);
        out.push(id, id);
    }
    (out, pooled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[(u32, f32)]]) -> Codes {
        let mut codes = Codes::default();
        for row in rows {
            codes.push_row(row.iter().copied(), true);
        }
        codes
    }

    #[test]
    fn columns_hold_what_rows_held() {
        let codes = rows(&[&[(0, 1.0), (3, 2.0)], &[], &[(3, 4.0)]]);
        let columns = ByLatent::new(&codes, 5);
        assert_eq!((columns.n_rows, columns.n_latents()), (3, 5));
        assert_eq!(columns.latent(0), (&[0][..], &[1.0][..]));
        assert_eq!(columns.latent(3), (&[0, 2][..], &[2.0, 4.0][..]));
        assert!(columns.latent(4).0.is_empty());
    }

    #[test]
    fn pooling_keeps_the_largest_activation_of_an_id() {
        let mut names = Names::default();
        for (id, group) in [("A:1", "A"), ("B:1", "B"), ("A:2", "A")] {
            names.push(id, group);
        }
        assert!(names.grouped());
        assert_eq!((names.row_id(2), names.group_id(2)), ("A:2", "A"));
        let codes = rows(&[&[(0, 1.0), (3, 2.0)], &[(1, 1.0)], &[(0, 5.0), (2, 1.0)]]);
        let (names, codes) = pooled(&names, &codes);
        assert_eq!((names.n_rows(), names.row_id(0), names.grouped()), (2, "A", false));
        assert_eq!(codes.row(0), (&[0, 2, 3][..], &[5.0, 1.0, 2.0][..]));
        assert_eq!(codes.row(1), (&[1][..], &[1.0][..]));
    }
}
