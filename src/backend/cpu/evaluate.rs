//! The inference code of rows: its entries, and the errors of the reconstruction from it.

use super::above::Above;
use super::fast::{Work, encode, make_room};
use super::norm::Batch;
use super::relax::{RowScratch, hard_row};
use super::sparse::{CodeChunk, ROWS};
use crate::backend::{Codes, EvalSums};
use crate::error::Result;
use crate::model::Params;
use crate::rows::RowSource;
use crate::spec::{Inference, MOST_PREFIXES, ModelSpec};
use rayon::prelude::*;

/// The inference code of a row of scores into `codes`; false where a score is not finite.
fn code_row(
    spec: &ModelSpec,
    params: &Params,
    z: &[f32],
    scratch: &mut RowScratch,
    codes: &mut CodeChunk,
) -> bool {
    let thresholds = params.threshold.as_deref();
    match spec.forward.inference {
        Inference::Topk => hard_row(spec.forward.activation, z, spec.forward.k, 1.0, scratch, codes),
        Inference::Relu => hard_row(spec.forward.activation, z, z.len(), 1.0, scratch, codes),
        Inference::Threshold => Above { thresholds, reach: 0.0 }.row(z, codes),
    }
}

/// What a row, or a few of them, add to the sums of an evaluation.
#[derive(Clone, Copy, Default)]
struct Errors {
    squared: f64,
    absolute: f64,
    cosine: f64,
    by_prefix: [f64; MOST_PREFIXES],
}

impl Errors {
    fn add(&mut self, other: &Self) {
        self.squared += other.squared;
        self.absolute += other.absolute;
        self.cosine += other.cosine;
        self.by_prefix.iter_mut().zip(other.by_prefix).for_each(|(sum, part)| *sum += part);
    }
}

/// Adds a chunk of rows to the sums of an evaluation.
pub(super) fn evaluate_rows(
    data: &dyn RowSource,
    spec: &ModelSpec,
    params: &Params,
    rows: &[u32],
    work: &mut Work,
    fired: &mut [u64],
    sums: &mut EvalSums,
) -> Result<()> {
    let (n, d, m) = (rows.len(), params.d_in, params.n_latents);
    work.batch.load(data, rows, spec.forward.row_eps(), &params.b_pre)?;
    encode(&work.batch.input, params, &mut work.scores);
    work.codes.resize_with(n.div_ceil(ROWS), CodeChunk::default);
    make_room(&mut work.recon, n * d);
    let (batch, ends) = (&work.batch, spec.forward.prefixes.ends());
    let parts: Vec<Errors> = work
        .codes
        .par_iter_mut()
        .zip(work.scores.par_chunks(ROWS * m))
        .zip(work.recon.par_chunks_mut(ROWS * d))
        .enumerate()
        .map_init(RowScratch::default, |scratch, (chunk, ((codes, scores), recon))| {
            codes.clear();
            let mut part = Errors::default();
            for (i, (z, recon)) in scores.chunks_exact(m).zip(recon.chunks_exact_mut(d)).enumerate() {
                let finite = code_row(spec, params, z, scratch, codes);
                recon.copy_from_slice(&params.b_pre);
                let mut row = Errors::default();
                for (p, entries) in codes.segments(i, ends).enumerate() {
                    codes.decode(entries, params.decoder(), recon);
                    let by_prefix = row.by_prefix;
                    row = row_errors(batch, chunk * ROWS + i, recon);
                    row.by_prefix = by_prefix;
                    if !ends.is_empty() {
                        row.by_prefix[p] = row.squared;
                    }
                }
                part.add(&row);
                if !finite {
                    part.squared = f64::NAN;
                }
            }
            part
        })
        .collect();
    for part in parts {
        sums.squared += part.squared;
        sums.absolute += part.absolute;
        sums.cosine += part.cosine;
        sums.by_prefix.iter_mut().zip(part.by_prefix).for_each(|(sum, part)| *sum += part);
    }
    for chunk in &work.codes {
        sums.active += chunk.index.len() as u64;
        chunk.index.iter().for_each(|&j| fired[j as usize] += 1);
    }
    sums.rows += n as u64;
    sums.prefixes = ends.len();
    Ok(())
}

/// Adds the codes of a chunk of rows to `out`.
pub(super) fn encode_rows(
    data: &dyn RowSource,
    spec: &ModelSpec,
    params: &Params,
    rows: &[u32],
    work: &mut Work,
    out: &mut Codes,
) -> Result<()> {
    let m = params.n_latents;
    work.batch.load(data, rows, spec.forward.row_eps(), &params.b_pre)?;
    encode(&work.batch.input, params, &mut work.scores);
    work.codes.resize_with(rows.len().div_ceil(ROWS), CodeChunk::default);
    let finite: Vec<Vec<bool>> = work
        .codes
        .par_iter_mut()
        .zip(work.scores.par_chunks(ROWS * m))
        .map_init(RowScratch::default, |scratch, (codes, scores)| {
            codes.clear();
            scores.chunks_exact(m).map(|z| code_row(spec, params, z, scratch, codes)).collect()
        })
        .collect();
    for (chunk, finite) in work.codes.iter().zip(finite) {
        for (i, finite) in finite.into_iter().enumerate() {
            out.push_row(chunk.row(i).map(|at| (chunk.index[at], chunk.value[at])), finite);
        }
    }
    Ok(())
}

/// Squared error, absolute error and cosine of one reconstructed row.
fn row_errors(batch: &Batch, n: usize, recon: &[f32]) -> Errors {
    let d = recon.len();
    let (std, mean) = (f64::from(batch.std[n]), f64::from(batch.mean[n]));
    let (mut squared, mut absolute) = (0.0, 0.0);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (&y, &centered) in recon.iter().zip(&batch.centered[n * d..(n + 1) * d]) {
        let (scaled, centered) = (f64::from(y) * std, f64::from(centered));
        let miss = scaled - centered;
        squared += miss * miss;
        absolute += miss.abs();
        let (x, y) = (centered + mean, scaled + mean);
        (xx, yy, xy) = (xx + x * x, yy + y * y, xy + x * y);
    }
    let cosine = if xx > 0.0 && yy > 0.0 { xy / (xx * yy).sqrt() } else { 0.0 };
    Errors { squared, absolute, cosine, ..Errors::default() }
}
