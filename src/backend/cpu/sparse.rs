//! Sparse codes by row, and the same entries by latent.

use super::fast::make_room;
use super::simd;
use std::ops::Range;

/// Rows whose entries are kept together and worked on by one task.
pub const ROWS: usize = 16;

/// The code entries of up to [`ROWS`] neighbouring rows. Parallel arrays; row i of the chunk owns the entries
/// `ends[i - 1] .. ends[i]`, by rising latent.
#[derive(Debug, Default, Clone)]
pub struct CodeChunk {
    /// End of each row's entries.
    pub ends: Vec<usize>,
    /// Latent.
    pub index: Vec<u32>,
    /// Value of the code that is decoded here.
    pub value: Vec<f32>,
    /// Softmax weight p, negative where the score is not positive (such a latent is decoded but gets no
    /// gradient); 0 where the softmax plays no part.
    pub share: Vec<f32>,
    /// Factor of dh that goes straight to dz: alpha for the top k, 0 for the rest.
    pub direct: Vec<f32>,
    /// Gradient of the score, filled by the backward pass.
    pub grad: Vec<f32>,
    /// In a model that trains thresholds: 1 where the score is within reach of its threshold's kernel, else 0, and then the
    /// gradient of the threshold, filled by the backward pass. Else empty.
    pub edge: Vec<f32>,
    /// Latents of the hard code, whatever its weight in the mix: those that fire.
    pub fired: Vec<u32>,
}

impl CodeChunk {
    /// Forgets all entries.
    pub fn clear(&mut self) {
        self.ends.clear();
        for values in [&mut self.value, &mut self.share, &mut self.direct, &mut self.grad, &mut self.edge] {
            values.clear();
        }
        self.index.clear();
        self.fired.clear();
    }

    /// No entries, with room for `len`.
    pub fn with_capacity(len: usize) -> Self {
        Self {
            index: Vec::with_capacity(len),
            value: Vec::with_capacity(len),
            share: Vec::with_capacity(len),
            direct: Vec::with_capacity(len),
            grad: Vec::with_capacity(len),
            ..Self::default()
        }
    }

    /// Adds an entry to the row that is being filled.
    pub fn push(&mut self, index: u32, value: f32, share: f32, direct: f32) {
        self.index.push(index);
        self.value.push(value);
        self.share.push(share);
        self.direct.push(direct);
        self.grad.push(0.0);
    }

    /// Ends the row that is being filled.
    pub fn end_row(&mut self) {
        self.ends.push(self.index.len());
    }

    /// The entries of row `i` of the chunk.
    pub fn row(&self, i: usize) -> Range<usize> {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        start..self.ends[i]
    }

    /// The entries of row `i` in each of the runs of latents that end at `ends`; all of them, where there are no ends.
    pub fn segments(&self, i: usize, ends: &[u32]) -> impl Iterator<Item = Range<usize>> {
        let all = self.row(i);
        let mut from = all.start;
        let cut = |end: &u32| all.start + self.index[all.clone()].partition_point(|j| j < end);
        let cuts: Vec<usize> = if ends.is_empty() { vec![all.end] } else { ends.iter().map(cut).collect() };
        cuts.into_iter().map(move |to| std::mem::replace(&mut from, to)..to)
    }

    /// Adds `sum over entries of value * w_dec[latent]` to `out` (D), four latents at a time.
    pub fn decode(&self, range: Range<usize>, w_dec: &[f32], out: &mut [f32]) {
        let d = out.len();
        let weights = |j: u32| &w_dec[j as usize * d..(j as usize + 1) * d];
        let (index, value) = (self.index[range.clone()].chunks_exact(4), self.value[range].chunks_exact(4));
        let rest = (index.remainder(), value.remainder());
        for (j, v) in index.zip(value) {
            let rows = [weights(j[0]), weights(j[1]), weights(j[2]), weights(j[3])];
            simd::axpy4([v[0], v[1], v[2], v[3]], rows, out);
        }
        for (&j, &v) in rest.0.iter().zip(rest.1) {
            simd::axpy(v, weights(j), out);
        }
    }
}

/// The entries of all chunks sorted by latent, within a latent by row: what a latent's gradient adds up, in an
/// order that never changes.
#[derive(Debug, Default)]
pub struct ByLatent {
    /// Latent j owns the entries `starts[j] .. starts[j + 1]` (M + 1 values).
    pub starts: Vec<usize>,
    /// Row in the batch.
    pub row: Vec<u32>,
    /// Code value.
    pub value: Vec<f32>,
    /// Gradient of the score.
    pub grad: Vec<f32>,
    /// Gradient of the latent's threshold, in a model that trains them; else empty.
    pub edge: Vec<f32>,
}

impl ByLatent {
    /// Sorts the entries of `chunks` by counting.
    pub fn build(&mut self, chunks: &[CodeChunk], n_latents: usize) {
        self.starts.clear();
        self.starts.resize(n_latents + 2, 0);
        // Counted two places on, so that filling leaves each start where it belongs.
        for chunk in chunks {
            for &j in &chunk.index {
                self.starts[j as usize + 2] += 1;
            }
        }
        for j in 2..n_latents + 2 {
            self.starts[j] += self.starts[j - 1];
        }
        let total = self.starts[n_latents + 1];
        make_room(&mut self.row, total);
        make_room(&mut self.value, total);
        make_room(&mut self.grad, total);
        let edges = chunks.iter().any(|chunk| !chunk.edge.is_empty());
        make_room(&mut self.edge, if edges { total } else { 0 });
        for (c, chunk) in chunks.iter().enumerate() {
            for i in 0..chunk.ends.len() {
                for entry in chunk.row(i) {
                    let place = &mut self.starts[chunk.index[entry] as usize + 1];
                    self.row[*place] = (c * ROWS + i) as u32;
                    self.value[*place] = chunk.value[entry];
                    self.grad[*place] = chunk.grad[entry];
                    if edges {
                        self.edge[*place] = chunk.edge[entry];
                    }
                    *place += 1;
                }
            }
        }
        self.starts.pop();
    }

    /// The entries of latent `j`.
    pub fn latent(&self, j: usize) -> Range<usize> {
        self.starts[j]..self.starts[j + 1]
    }
}

/// Rows of D values, one every `stride` values.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// From the first row on.
    pub values: &'a [f32],
    /// Values from a row's start to the next one's.
    pub stride: usize,
}

/// Adds `sum over entries of factor * rows[row]` to `out` (D), four entries at a time.
pub fn gather_rows(factor: &[f32], row: &[u32], rows: Rows<'_>, out: &mut [f32]) {
    let d = out.len();
    let at = |n: u32| &rows.values[n as usize * rows.stride..][..d];
    let (factors, numbers) = (factor.chunks_exact(4), row.chunks_exact(4));
    let rest = (factors.remainder(), numbers.remainder());
    for (f, n) in factors.zip(numbers) {
        simd::axpy4([f[0], f[1], f[2], f[3]], [at(n[0]), at(n[1]), at(n[2]), at(n[3])], out);
    }
    for (&f, &n) in rest.0.iter().zip(rest.1) {
        simd::axpy(f, at(n), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_by_latent_and_within_a_latent_by_row() {
        let mut chunks = vec![CodeChunk::default(); 2];
        let rows = ROWS as u32 + 4;
        for n in 0..rows {
            let chunk = &mut chunks[n as usize / ROWS];
            for j in [0, 3, 4 + n % 3] {
                chunk.push(j, (100 * n + j) as f32, 0.0, 1.0);
            }
            chunk.end_row();
        }
        let mut by = ByLatent::default();
        by.build(&chunks, 8);
        assert_eq!(by.starts, [0, 20, 20, 20, 40, 47, 54, 60, 60]);
        assert_eq!(by.row[by.latent(3)], (0..20).collect::<Vec<u32>>());
        assert_eq!(by.row[by.latent(5)], [1, 4, 7, 10, 13, 16, 19]);
        for j in 0..8 {
            for e in by.latent(j) {
                assert_eq!(by.value[e], (100 * by.row[e] + j as u32) as f32);
            }
        }
    }
}
