//! Codes of scores above thresholds: those of the latents, or 0 for all of them.
//!
//! A batch whose rows have few active latents becomes entries. One with many of them, as at the start of training, keeps its
//! code as a matrix (N, M), for dense products ([`Mode::DenseCode`]).

use super::fast::make_room;
use super::relax::{DENSEST, Mode};
use super::sparse::{CodeChunk, ROWS};
use rayon::prelude::*;

/// Which scores are active, and which are near enough to a threshold to move it.
#[derive(Debug, Clone, Copy)]
pub struct Above<'a> {
    /// (M); `None` is 0 for all latents, and no threshold is trained.
    pub thresholds: Option<&'a [f32]>,
    /// Half the width of the kernel; 0 outside training.
    pub reach: f32,
}

impl Above<'_> {
    fn threshold(&self, j: usize) -> f32 {
        self.thresholds.map_or(0.0, |t| t[j])
    }

    /// True where the score of latent `j` is active.
    pub fn is_active(&self, j: usize, z: f32) -> bool {
        z > self.threshold(j)
    }

    /// True where the score of latent `j` moves its threshold.
    pub fn is_edge(&self, j: usize, z: f32) -> bool {
        self.thresholds.is_some() && (z - self.threshold(j)).abs() < self.reach
    }

    /// Entries that a row of scores has, and whether all scores are finite.
    fn count(&self, z: &[f32]) -> (usize, bool) {
        let (mut count, mut zeros) = (0, 0.0);
        match self.thresholds {
            Some(t) => z.iter().zip(t).for_each(|(&z, &t)| {
                count += usize::from(z > t - self.reach);
                zeros += z * 0.0;
            }),
            None => z.iter().for_each(|&z| {
                count += usize::from(z > 0.0);
                zeros += z * 0.0;
            }),
        }
        (count, zeros == 0.0)
    }

    /// The code of a row of scores into `chunk`; false where a score is not finite.
    pub fn row(&self, z: &[f32], chunk: &mut CodeChunk) -> bool {
        let mut zeros = 0.0;
        for (j, &z) in z.iter().enumerate() {
            zeros += z * 0.0;
            let active = self.is_active(j, z);
            let edge = self.is_edge(j, z);
            if active {
                chunk.push(j as u32, z, 0.0, 1.0);
                chunk.fired.push(j as u32);
            } else if edge {
                chunk.push(j as u32, 0.0, 0.0, 0.0);
            }
            if self.reach > 0.0 && (active || edge) {
                chunk.edge.push(f32::from(u8::from(edge)));
            }
        }
        chunk.end_row();
        zeros == 0.0
    }

    /// The codes of a batch of scores (N, M): as entries of `chunks`, or, where `may_be_dense` and there are many, as a matrix
    /// in `code`, with what fires in `chunks`. `active` gets the active latents of each row (N). Returns how they are held,
    /// and false where a score is not finite.
    pub fn batch(
        &self,
        scores: &[f32],
        m: usize,
        may_be_dense: bool,
        chunks: &mut [CodeChunk],
        code: &mut Vec<f32>,
        active: &mut Vec<u32>,
    ) -> (Mode, bool) {
        let (entries, finite) = scores
            .par_chunks_exact(m)
            .map(|z| self.count(z))
            .reduce(|| (0, true), |a, b| (a.0 + b.0, a.1 && b.1));
        active.clear();
        active.resize(scores.len() / m, 0);
        let per_chunk =
            chunks.par_iter_mut().zip(scores.par_chunks(ROWS * m)).zip(active.par_chunks_mut(ROWS));
        if !may_be_dense || entries * DENSEST <= scores.len() {
            per_chunk.for_each(|((chunk, scores), active)| {
                chunk.clear();
                for (z, active) in scores.chunks_exact(m).zip(active) {
                    let before = chunk.fired.len();
                    self.row(z, chunk);
                    *active = (chunk.fired.len() - before) as u32;
                }
            });
            return (Mode::Hard, finite);
        }
        make_room(code, scores.len());
        per_chunk.zip(code.par_chunks_mut(ROWS * m)).for_each(|(((chunk, scores), active), code)| {
            chunk.clear();
            let rows = scores.chunks_exact(m).zip(code.chunks_exact_mut(m));
            for ((z, code), active) in rows.zip(active) {
                for (j, (&z, h)) in z.iter().zip(code).enumerate() {
                    let is_active = self.is_active(j, z);
                    *h = if is_active { z } else { 0.0 };
                    if is_active {
                        *active += 1;
                        chunk.fired.push(j as u32);
                    }
                }
                chunk.end_row();
            }
        });
        (Mode::DenseCode, finite)
    }
}
