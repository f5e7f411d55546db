//! The N k largest positive scores of a batch, exactly.
//!
//! 1. The largest score of each run of scores, in one vector pass over all rows.
//! 2. The N k-th largest of these maxima is a bound: at least N k scores reach it.
//! 3. Scores at or above the bound are collected, row by row.
//! 4. The N k-th largest of the collected is the last that has a place. A key of (score, lowest row, lowest latent first)
//!    makes ties exact.

use super::simd::chunk_maxima;
use super::sparse::{CodeChunk, ROWS};
use rayon::prelude::*;

/// Scores in a run.
const RUN: usize = 32;

/// Memory of the selection, kept from step to step.
#[derive(Debug, Default)]
pub struct BatchTop {
    maxima: Vec<f32>,
    order: Vec<f32>,
    keys: Vec<Key>,
    found: Vec<Vec<Found>>,
}

/// Orders scores: bits of positive floats rise with their values, and of equal ones the lowest place is the largest key.
type Key = (u32, u64);

/// A score that reaches the bound: its row in the chunk of rows, its latent, the score.
type Found = (u32, u32, f32);

fn key(chunk: usize, m: usize, &(row, latent, score): &Found) -> Key {
    let place = (chunk * ROWS + row as usize) as u64 * m as u64 + u64::from(latent);
    (score.to_bits(), !place)
}

impl BatchTop {
    /// The positive ones among the `held` largest of `scores` (N, M) as entries of `chunks`; latents of the `firing` largest
    /// (at most `held`) fire. Returns false where a score is NaN or infinite (the entries are then of no use).
    pub fn select(
        &mut self,
        scores: &[f32],
        m: usize,
        held: usize,
        firing: usize,
        chunks: &mut [CodeChunk],
    ) -> bool {
        let runs = m.div_ceil(RUN);
        self.maxima.resize(scores.len() / m * runs, 0.0);
        let finite = self
            .maxima
            .par_chunks_exact_mut(runs)
            .zip(scores.par_chunks_exact(m))
            .map(|(maxima, z)| !chunk_maxima(z, RUN, maxima).is_nan())
            .reduce(|| true, |a, b| a && b);
        if !finite {
            return false;
        }
        let bound = self.bound(held);
        self.found.resize_with(chunks.len(), Vec::new);
        self.found
            .par_iter_mut()
            .zip(scores.par_chunks(ROWS * m).zip(self.maxima.par_chunks(ROWS * runs)))
            .for_each(|(found, (scores, maxima))| collect(scores, maxima, m, bound, found));
        self.keys.clear();
        for (chunk, found) in self.found.iter().enumerate() {
            self.keys.extend(found.iter().map(|found| key(chunk, m, found)));
        }
        let least = least_of(&mut self.keys, held);
        let least_firing = least_of(&mut self.keys, firing);
        chunks.par_iter_mut().zip(&self.found).enumerate().for_each(|(at, (chunk, found))| {
            chunk.clear();
            let rows = (scores.len() / m - at * ROWS).min(ROWS);
            let mut found = found.iter().peekable();
            for row in 0..rows as u32 {
                while let Some(entry) = found.next_if(|entry| entry.0 == row) {
                    let (_, latent, score) = *entry;
                    let key = key(at, m, entry);
                    if key >= least {
                        chunk.push(latent, score, 0.0, 1.0);
                    }
                    if key >= least_firing {
                        chunk.fired.push(latent);
                    }
                }
                chunk.end_row();
            }
        });
        true
    }

    /// A score that at least `count` scores reach, if so many are positive; else the least positive one that counts.
    fn bound(&mut self, count: usize) -> f32 {
        if count > self.maxima.len() {
            return f32::MIN_POSITIVE;
        }
        self.order.clear();
        self.order.extend_from_slice(&self.maxima);
        let (_, kth, _) = self.order.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        kth.max(f32::MIN_POSITIVE)
    }
}

/// The scores of some rows that reach the bound, by row and latent.
fn collect(scores: &[f32], maxima: &[f32], m: usize, bound: f32, found: &mut Vec<Found>) {
    found.clear();
    let runs = m.div_ceil(RUN);
    for (row, (z, maxima)) in scores.chunks_exact(m).zip(maxima.chunks_exact(runs)).enumerate() {
        for (run, (values, &max)) in z.chunks(RUN).zip(maxima).enumerate() {
            if max >= bound {
                for (i, &value) in values.iter().enumerate() {
                    if value >= bound {
                        found.push((row as u32, (run * RUN + i) as u32, value));
                    }
                }
            }
        }
    }
}

/// The smallest of the `count` largest keys; one below all where there are no more.
fn least_of(keys: &mut [Key], count: usize) -> Key {
    if keys.len() <= count {
        return (0, 0);
    }
    *keys.select_nth_unstable_by(count - 1, |a, b| b.cmp(a)).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::reference;

    fn check(scores: &[f32], m: usize, held: usize) {
        let n = scores.len() / m;
        let mut chunks = vec![CodeChunk::default(); n.div_ceil(ROWS)];
        assert!(BatchTop::default().select(scores, m, held, held.div_ceil(2), &mut chunks));
        let wide: Vec<f64> = scores.iter().map(|&v| f64::from(v)).collect();
        let places = |count| {
            let mut at = reference::top_k(&wide, count);
            at.retain(|&at| scores[at] >= f32::MIN_POSITIVE);
            at.sort_unstable();
            at
        };
        let mut got = vec![];
        for (c, chunk) in chunks.iter().enumerate() {
            for i in 0..chunk.ends.len() {
                for entry in chunk.row(i) {
                    let at = (c * ROWS + i) * m + chunk.index[entry] as usize;
                    assert_eq!(chunk.value[entry], scores[at]);
                    got.push(at);
                }
            }
        }
        assert_eq!(got, places(held), "N {n} M {m} held {held}");
        let fired: usize = chunks.iter().map(|chunk| chunk.fired.len()).sum();
        assert_eq!(fired, places(held.div_ceil(2)).len());
    }

    #[test]
    fn the_largest_of_a_batch_equal_a_full_sort() {
        let unit =
            |i: usize| crate::noise::unit(crate::noise::philox4x32([i as u32, 1, 2, 3], [4, 5])[0]) - 0.4;
        for (n, m) in [(1, 1), (1, 70), (3, 33), (17, 64), (40, 500)] {
            let scores: Vec<f32> = (0..n * m).map(unit).collect();
            let steps: Vec<f32> = (0..n * m).map(|i| (i % 7) as f32 - 3.0).collect();
            for held in [1, 2, n, 5 * n, n * m / 2 + 1, n * m] {
                check(&scores, m, held);
                check(&steps, m, held);
                check(&vec![0.5; n * m], m, held);
                check(&vec![-0.5; n * m], m, held);
            }
        }
    }

    #[test]
    fn a_score_that_is_not_finite_is_told() {
        let mut scores = vec![0.25f32; 640];
        scores[639] = f32::INFINITY;
        assert!(!BatchTop::default().select(&scores, 64, 8, 8, &mut [CodeChunk::default()]));
    }
}
