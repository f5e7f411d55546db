//! Sparse codes of rows, as [`super::Backend::encode`] gives them.

/// The inference codes of N rows in compressed form: row i owns the entries `indptr[i] .. indptr[i + 1]`, by
/// rising latent. Only active latents have an entry, so no value is 0.
///
/// Values are in the model's own units: the scores, before a row's standard deviation is given back.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// Where each row begins, and the number of entries at the end (N + 1 values).
    pub indptr: Vec<u64>,
    /// Latent of each entry.
    pub indices: Vec<u32>,
    /// Value of each entry.
    pub values: Vec<f32>,
    /// The first row (from 0) with a score that is NaN or infinite; its entries mean nothing.
    pub bad: Option<usize>,
}

impl Default for Codes {
    fn default() -> Self {
        Self { indptr: vec![0], indices: vec![], values: vec![], bad: None }
    }
}

impl Codes {
    /// Number of rows, N.
    pub fn n_rows(&self) -> usize {
        self.indptr.len() - 1
    }

    /// Adds a row: its entries by rising latent, and whether all its scores are finite.
    pub fn push_row(&mut self, entries: impl IntoIterator<Item = (u32, f32)>, finite: bool) {
        if !finite && self.bad.is_none() {
            self.bad = Some(self.n_rows());
        }
        for (index, value) in entries {
            self.indices.push(index);
            self.values.push(value);
        }
        self.indptr.push(self.indices.len() as u64);
    }

    /// Latents and values of row `i`.
    ///
    /// # Panics
    /// If `i` is not a row.
    pub fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let range = self.indptr[i] as usize..self.indptr[i + 1] as usize;
        (&self.indices[range.clone()], &self.values[range])
    }
}
